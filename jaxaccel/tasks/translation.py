"""Translation: texts of one language as texts of another, token by token; BLEU of whole corpora."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from jaxaccel.core.options import NonNegative, ShareBelowOne
from jaxaccel.data.examples import read_column
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.batches import fit_length, stack_examples
from jaxaccel.tasks.bleu import import_sacrebleu, score_translations
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.bring_texts import as_text
from jaxaccel.tasks.decoding import decode_greedily, search_beams
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.read_texts import decode_text, read_texts
from jaxaccel.tasks.reading import Input
from jaxaccel.tasks.rows import log_first
from jaxaccel.tasks.task import Apply, Batch, PyTree
from jaxaccel.tasks.token_loss import find_perplexity, measure_tokens, shift_tokens
from jaxaccel.tasks.token_sequences import TokenSequences, fill_row, read_lengths, text_of

log = logging.getLogger(__name__)
LENGTHS = ("source_length", "target_length")
MORE = 10
"""Tokens that a translation may have beyond twice those of its source."""


@dataclasses.dataclass(frozen=True)
class Translation(TokenSequences):
    """Batches hold ``source`` and ``target`` (B, L) int32, which end with the end, and ``source_length`` and
    ``target_length`` (B,) int32; a target of length 0 has no loss.

    The model is called with the source, a mask (B, L) bool, True where there is a token, and the target moved by one
    place behind the begin, and gives logits (B, L, vocabulary). To decode it has methods ``encode(source, mask) ->
    memory``, ``start(memory, mask, length) -> cache`` and ``step(token, cache) -> (logits, cache)``; every leaf of a
    cache has the batch as its first axis.
    """

    metric: ClassVar[str] = "bleu"
    source: str = "en"
    """Part of an example that is translated."""
    target: str = "de"
    """Part of an example that is its translation."""
    label_smoothing: ShareBelowOne = 0.1
    """Share of each target spread evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567)."""
    beam: Annotated[int, Interval(ge=1, le=256)] = 1
    """Hypotheses that the search for the best translation keeps; 1 takes the most probable token at each step."""
    nbest: Annotated[int, Interval(ge=1, le=256)] = 1
    """Number of translations that a prediction has, the best first; no more than `beam`."""
    alpha: NonNegative = 0.6
    """Prefer longer translations by this: scores are log probabilities divided by ((5 + tokens) / 6) ** alpha (Wu et
    al. 2016, arXiv:1609.08144)."""

    def check_values(self) -> None:
        """Checks that there are two parts, and as many hypotheses as translations."""
        super().check_values()
        if self.source == self.target:
            raise UserError(
                f"{option('source')} and {option('target')} are both {self.source!r}: name two parts of an example"
            )
        if self.nbest > self.beam:
            raise UserError(
                f"{option('nbest')} {self.nbest} needs as many hypotheses: {option('beam', self.nbest)}"
            )

    @property
    def parts(self) -> dict[str, str]:
        """The two languages."""
        return {"source": self.source, "target": self.target}

    def fit(self, source: Any) -> "Translation":
        """The task with one tokenizer of both languages and its lengths, for which the whole split is read."""
        import_sacrebleu()  # to say now that it is missing, and not after an epoch
        return super().fit(source)

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``source`` and ``target`` (n,) int32 and their lengths () int32; 0 of the target where a text is empty."""
        source, target = self.encode([text_of(example, part) for part in self.parts.values()])
        empty = len(source) == 1 or len(target) == 1
        return {
            "source": source,
            "source_length": np.asarray(len(source), np.int32),
            "target": target,
            "target_length": np.asarray(0 if empty else len(target), np.int32),
        }

    def length(self, element: Mapping[str, np.ndarray]) -> int:
        """How many tokens the longer text has."""
        return max(int(element[name]) for name in LENGTHS if name in element)

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """Both texts filled up. A pair of which one is cut has no loss: its end would be a wrong one."""
        pad, filled = self.tokens.pad, dict(element)
        for name in ("source", "target"):
            if name in element:
                filled[name] = fill_row(element[name], length, pad)
        filled["source_length"] = np.minimum(element["source_length"], length).astype(np.int32)
        if "target" in element and self.length(element) > length:
            filled["target_length"] = np.asarray(0, np.int32)
        return filled

    def lengths(self, source: Any, advance: Any = lambda n: None) -> np.ndarray:
        """(n,) int64: the length of each pair. It says how many pairs have no loss, and why."""
        found = read_lengths(source, self, LENGTHS, advance)
        lengths = np.maximum(*found.values())
        empty = int((found["target_length"] == 0).sum())
        long = int((lengths > self.bounds[-1]).sum())
        if empty:
            log.warning(
                f"{empty:,} of {len(lengths):,} pairs of split {source.split} have an empty text: they have no loss"
            )
        if long:
            log.warning(
                f"{long:,} of {len(lengths):,} pairs of split {source.split} have more than {self.bounds[-1]} tokens: "
                "they have no loss, and are translated from their first ones"
            )
        return lengths

    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """Source, mask, and the target behind the begin."""
        return batch["source"], self._mask(batch), shift_tokens(batch["target"], self.begin)

    def weights(self, batch: Batch) -> jax.Array:
        """(B, L): 0 behind the end of a target."""
        places = jnp.arange(batch["target"].shape[1])
        return batch["mask"][:, None] * (places < batch["target_length"][:, None])

    def loss(self, outputs: jax.Array, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        """Smoothed cross-entropy in nats a token; each token counts as much wherever it stands."""
        found = measure_tokens(outputs, batch["target"], self.weights(batch), self.label_smoothing)
        return found.smoothed, {"loss": found.smoothed, "accuracy": found.accuracy}

    def predict(self, apply: Any, batch: Batch) -> dict[str, jax.Array]:
        """``tokens`` (B, nbest, length) int32, filled up with -1, and ``score`` (B, nbest), the best first.

        A translation has at most 10 tokens more than twice those of its source.
        """
        mask = self._mask(batch)
        most = self.bounds[-1]
        length = min(2 * batch["source"].shape[1] + MORE, most)
        limit = jnp.minimum(2 * batch["source_length"] + MORE, most)
        cache = apply.start(apply.encode(batch["source"], mask), mask, length)
        begin = jnp.full(mask.shape[0], self.begin, jnp.int32)
        places = (begin, self.end, length, self.tokens.pad)
        if self.beam == 1:
            found = decode_greedily(apply.step, cache, *places, limit=limit)
            # As many as the beam counts: with the end, where there is one.
            count = jnp.minimum(found.lengths + 1, limit)
            score = found.scores / ((5 + count) / 6) ** self.alpha
            tokens, lengths, score = found.tokens[:, None], found.lengths[:, None], score[:, None]
        else:
            beams = search_beams(apply.step, cache, *places, beam=self.beam, alpha=self.alpha, limit=limit)
            tokens, lengths, score = (x[:, : self.nbest] for x in beams)
        return {
            "tokens": jnp.where(jnp.arange(length) < lengths[..., None], tokens, -1),
            "score": score.astype(jnp.float32),
        }

    def evaluate(self, apply: Apply, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """``loss`` (without smoothing) and ``accuracy`` of the targets' tokens, and the translations as rows."""
        found = measure_tokens(apply(*self.inputs(batch)), batch["target"], self.weights(batch))
        means = {"loss": found.loss, "accuracy": found.accuracy}
        return means | {"tokens": self.predict(apply, batch)["tokens"][:, 0]}

    def summarize(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The means, and ``perplexity``, exp of the loss."""
        scores = super().summarize(means)
        return scores | {"perplexity": find_perplexity(scores)}

    def score(self, rows: Mapping[str, Sequence[np.ndarray]], source: Any) -> dict[str, float]:
        """``bleu``, ``bleu_lc`` and ``chrf`` of the whole split."""
        references = [text_of({"": text}, "") for text in read_column(source, self.target)]
        found = [self.decode(row) for row in rows["tokens"]]
        log_first(found, references)
        return score_translations(found, references)

    def describe(
        self, given: Any, prediction: PyTree, facts: Mapping[str, Any], *, top: int
    ) -> dict[str, Any]:
        """``text``, ``translation`` and ``score``; with `nbest` also the others, as ``nbest``.

        A score is the log probability of a translation and its end, divided as `alpha` says.
        """
        if np.isnan(prediction["score"]).any():
            raise UserError("the model's outputs are NaN or infinite")
        found = [
            {"translation": self.decode(tokens), "score": round(float(score), 6)}
            for tokens, score in zip(prediction["tokens"], prediction["score"], strict=True)
        ]
        return {"text": given, **found[0]} | ({"nbest": found} if self.nbest > 1 else {})

    def relabel(self, example: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
        """The pair with its translation by the model."""
        return {self.source: text_of(example, self.source), self.target: described["translation"]}

    def read(self, path: Path) -> Iterator[Input]:
        """Each line of a file of text, or each row of a csv, tsv or jsonl that has the column `source`."""
        yield from read_texts(path, (self.source,), "task.source")

    def read_line(self, line: bytes, name: str) -> Iterator[Input]:
        """The line as a text."""
        yield decode_text(line, name)

    def read_text(self, text: str, name: str) -> Input:
        """The text."""
        return Input(name, text)

    def bring(self, given: Any, example: Example, size: int) -> Given:
        """Texts, as batches of up to `size`, each as long as its longest text needs.

        Args:
          given: a text, or an iterable of texts.
          example: shape and dtype of each array of one example.
          size: texts in a batch at most.

        Raises:
          UserError: it is no text, an empty one, or one of more tokens than the model was trained on.
        """
        single = isinstance(given, (str, bytes))
        if not single and (not isinstance(given, Iterable) or isinstance(given, Mapping)):
            raise UserError(f"give a text or several, not {given!r:.60}")
        bounds = self.bounds

        def to_row(text: Any, number: int) -> dict[str, np.ndarray]:
            tokens = self.encode([as_text(text, number)])[0]
            name = "the text" if single else f"text {number}"
            if len(tokens) == 1:
                raise UserError(f"{name} is empty: there is nothing to translate")
            if len(tokens) > bounds[-1]:
                raise UserError(
                    f"{name} has {len(tokens):,} tokens, and the model was trained on up to {bounds[-1]}: divide it "
                    "into sentences"
                )
            return {"source": tokens, "source_length": np.asarray(len(tokens), np.int32)}

        def batches() -> Iterator[dict[str, Any]]:
            numbered = iter(enumerate([given] if single else given))
            while some := list(itertools.islice(numbered, size)):
                rows = [to_row(text, number) for number, text in some]
                length = fit_length(bounds, max(map(self.length, rows)))
                yield stack_examples([self.pad(row, length) for row in rows])

        return Given(batches(), single)

    def show(self, example: Mapping[str, Any]) -> str:
        """The text to translate."""
        return text_of(example, self.source)

    def _mask(self, batch: Batch) -> jax.Array:
        return jnp.arange(batch["source"].shape[1]) < batch["source_length"][:, None]
