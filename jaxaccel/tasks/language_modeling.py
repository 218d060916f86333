"""Language modeling: each token of a text from those before it; perplexity, bits a byte, and texts that go on."""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Gt, Le

from jaxaccel.core.options import Count, CountOrZero, NonNegative
from jaxaccel.errors import UserError
from jaxaccel.tasks.batches import fit_length, stack_examples
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.bring_texts import as_text
from jaxaccel.tasks.decoding import sample_tokens
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.read_texts import decode_text, read_texts
from jaxaccel.tasks.reading import Input
from jaxaccel.tasks.task import Apply, Batch, PyTree
from jaxaccel.tasks.token_loss import find_perplexity, measure_tokens, shift_tokens
from jaxaccel.tasks.token_sequences import TokenSequences, fill_row, text_of


class Prompt(NamedTuple):
    """A text to go on with, and the number that keys what is drawn."""

    text: str
    number: int


@dataclasses.dataclass(frozen=True)
class LanguageModeling(TokenSequences):
    """Batches hold ``token`` (B, L) int32, which ends with the end, ``length`` (B,) and ``bytes`` (B,) int32.

    The model is called with the tokens moved by one place behind the begin, and gives logits (B, L, vocabulary). To
    write it has methods ``start(length, batch) -> cache`` and ``step(token, cache) -> (logits, cache)``; every leaf of
    a cache has the batch as its first axis.
    """

    metric: ClassVar[str] = "perplexity"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    text: str = "text"
    """Part of an example that is its text."""
    write: Count = 50
    """Tokens that a prediction writes at most behind its prompt, no more than the longest training text has."""
    temperature: NonNegative = 1.0
    """Divide the logits by this before a token is drawn; 0 takes the most probable one."""
    top_k: CountOrZero = 0
    """Draw only from so many of the most probable tokens; 0 draws from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw only from the fewest tokens that have this probability together (Holtzman et al. 2020, arXiv:1904.09751)."""
    draw: CountOrZero = 0
    """Random seed of what is drawn; a prompt's draws are keyed by this and its line."""

    @property
    def parts(self) -> dict[str, str]:
        """The text."""
        return {"text": self.text}

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``token`` (n,) int32, ``length`` and ``bytes`` () int32; the end counts as one byte."""
        text = text_of(example, self.text)
        token = self.encode([text])[0]
        return {
            "token": token,
            "length": np.asarray(len(token), np.int32),
            "bytes": np.asarray(len(text.encode()) + 1, np.int32),
        }

    def length(self, element: Mapping[str, np.ndarray]) -> int:
        """How many tokens there are."""
        return int(element["length"])

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """The tokens filled up. Of a longer text the first ones are left, without an end, and their bytes."""
        token, count = element["token"], int(element["length"])
        filled = dict(element)
        if count > length:
            token = token[:length]
            left = len(self.tokens.decode(token).encode())
            filled |= {"bytes": np.asarray(left, np.int32), "length": np.asarray(length, np.int32)}
        return filled | {"token": fill_row(token, length, self.tokens.pad)}

    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """The tokens behind the begin."""
        return (shift_tokens(batch["token"], self.begin),)

    def weights(self, batch: Batch) -> jax.Array:
        """(B, L): 0 behind the end of a text."""
        places = jnp.arange(batch["token"].shape[1])
        return batch["mask"][:, None] * (places < batch["length"][:, None])

    def loss(self, outputs: jax.Array, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        """Cross-entropy in nats a token; each token counts as much wherever it stands."""
        found = measure_tokens(outputs, batch["token"], self.weights(batch))
        return found.loss, {"loss": found.loss, "accuracy": found.accuracy}

    def evaluate(self, apply: Apply, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """``loss`` and ``accuracy`` of tokens, and ``bits_per_byte``."""
        loss, means = self.loss(apply(*self.inputs(batch)), batch)
        read = (batch["bytes"] * batch["mask"]).sum()
        return means | {"bits_per_byte": Mean(loss.total / math.log(2), read.astype(jnp.float32))}

    def summarize(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The means, and ``perplexity``, exp of the loss."""
        scores = super().summarize(means)
        return scores | {"perplexity": find_perplexity(scores)}

    def predict(self, apply: Any, batch: Batch) -> dict[str, jax.Array]:
        """``tokens`` (B, length) int32: the prompt and what is written behind it, filled up with -1; ``score`` (B,).

        The score is the log probability of what is written. Texts of the data go on behind their last word: their end
        is left out.
        """
        token, count = batch["token"], batch["length"]
        last = jnp.take_along_axis(token, jnp.maximum(count - 1, 0)[:, None], 1)[:, 0]
        count = count - ((count > 0) & (last == self.end))
        rows, length = token.shape[0], self.bounds[-1]
        number = batch["number"] if "number" in batch else batch["index"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.draw), number)
        start = (apply.start(length, rows), token, count, jnp.zeros(rows, jnp.int32))

        def step(last: jax.Array, cache: PyTree) -> tuple[jax.Array, PyTree]:
            """Lets nothing but the prompt be drawn where it still goes on."""
            model, prompt, count, place = cache
            logits, model = apply.step(last, model)
            here = jnp.take_along_axis(prompt, jnp.minimum(place, prompt.shape[1] - 1)[:, None], 1)
            given = jnp.where(jnp.arange(logits.shape[-1]) == here, 0.0, -jnp.inf)
            forced = (place < count)[:, None]
            return jnp.where(forced, given, logits), (model, prompt, count, place + 1)

        found = sample_tokens(
            step, start, jnp.full(rows, self.begin, jnp.int32), self.end, length, self.tokens.pad, keys,
            temperature=self.temperature, top_k=self.top_k or None, top_p=self.top_p,
            limit=jnp.minimum(count + self.write, length),
        )  # fmt: skip
        there = jnp.arange(length) < found.lengths[:, None]
        return {"tokens": jnp.where(there, found.tokens, -1), "score": found.scores}

    def describe(
        self, given: Any, prediction: PyTree, facts: Mapping[str, Any], *, top: int
    ) -> dict[str, Any]:
        """``prompt``, ``text``, which is the prompt and what was written behind it, and ``score``."""
        if np.isnan(prediction["score"]).any():
            raise UserError("the model's outputs are NaN or infinite")
        prompt = given.text if isinstance(given, Prompt) else given
        score = round(float(prediction["score"]), 6)
        return {"prompt": prompt, "text": self.decode(prediction["tokens"]), "score": score}

    def relabel(self, example: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
        """The text with what the model writes behind it."""
        return {self.text: described["text"]}

    def read(self, path: Path) -> Iterator[Input]:
        """Each line of a file of text, or each row of a csv, tsv or jsonl that has the column `text`, as a prompt."""
        yield from map(_as_prompt, read_texts(path, (self.text,)))

    def read_line(self, line: bytes, name: str) -> Iterator[Input]:
        """The line as a prompt."""
        yield _as_prompt(decode_text(line, name))

    def read_text(self, text: str, name: str) -> Input:
        """The text as a prompt."""
        return _as_prompt(Input(name, text))

    def bring(self, given: Any, example: Example, size: int) -> Given:
        """Prompts, as batches of up to `size`.

        Args:
          given: a text, which may be empty, or an iterable of texts or of `Prompt`s.
          example: shape and dtype of each array of one example.
          size: prompts in a batch at most.

        Raises:
          UserError: it is no text, or one that leaves no place for what is to be written.
        """
        single = isinstance(given, (str, bytes, Prompt))
        if not single and (not isinstance(given, Iterable) or isinstance(given, Mapping)):
            raise UserError(f"give a text or several, not {given!r:.60}")
        bounds = self.bounds

        def to_row(prompt: Any, number: int) -> dict[str, np.ndarray]:
            text, key = prompt if isinstance(prompt, Prompt) else (as_text(prompt, number), number)
            token = self.encode([text])[0][:-1]
            if len(token) >= bounds[-1]:
                name = "the prompt" if single else f"prompt {number}"
                raise UserError(
                    f"{name} has {len(token):,} tokens, and the model was trained on up to {bounds[-1]}: give its end "
                    "alone"
                )
            count = np.asarray(len(token), np.int32)
            return {"token": token, "length": count, "number": np.asarray(key, np.int32)}

        def batches() -> Iterator[dict[str, Any]]:
            numbered = iter(enumerate([given] if single else given))
            while some := list(itertools.islice(numbered, size)):
                rows = [to_row(prompt, number) for number, prompt in some]
                length = fit_length(bounds, max(map(self.length, rows)))
                yield stack_examples([self.pad(row, length) for row in rows])

        return Given(batches(), single)

    def show(self, example: Mapping[str, Any]) -> str:
        """The text."""
        return text_of(example, self.text)


def _as_prompt(given: Input) -> Input:
    """An input whose draws are keyed by its line, ``prompts.txt:3``."""
    if given.error:
        return given
    line = given.name.rpartition(":")[2]
    number = int(line) if line.isdecimal() else zlib.crc32(given.name.encode()) >> 1
    return given._replace(given=Prompt(given.given, number & 0x7FFFFFFF))
