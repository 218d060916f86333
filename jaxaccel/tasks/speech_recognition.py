"""Speech recognition by connectionist temporal classification: a transcript a sound, word and character error rates."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Interval
from tyro.conf import Suppress

from jaxaccel.core.options import NonNegative
from jaxaccel.data.examples import read_column
from jaxaccel.errors import UserError, option, spell_options
from jaxaccel.tasks.ctc import BLANK, compute_ctc, count_least_outputs
from jaxaccel.tasks.decoding import (
    NgramScores,
    align_ctc,
    collapse_best_path,
    count_ngrams,
    estimate_ngrams,
    follow_best_path,
    search_prefixes,
)
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.rows import log_first
from jaxaccel.tasks.sounds import Sounds
from jaxaccel.tasks.task import Apply, Batch, PyTree
from jaxaccel.tasks.transcripts import Transcripts, as_transcript, measure_errors

log = logging.getLogger(__name__)
UNKNOWN = -1
"""The number of labels of a transcript that the loss cannot use."""


@dataclasses.dataclass(frozen=True)
class SpeechRecognition(Sounds):
    """Batches hold ``label`` (B, L) int32, symbols from 1 on, and ``labels`` (B,) int32 besides the sounds.

    The model gives logits (B, ceil(T / subsampling), classes), of which class 0 is the blank.
    """

    metric: ClassVar[str] = "wer"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    logits: ClassVar[bool] = True
    own_facts: ClassVar[tuple[str, ...]] = ("symbols",)
    text: str = "text"
    """Part of an example that is its transcript."""
    units: Literal["character", "word"] = "character"
    """What the model spells transcripts in."""
    lowercase: bool = True
    """Read transcripts without capitals."""
    subsampling: Literal[1, 2, 4] = 2
    """Frames for each output of the model, which is told."""
    beam: Annotated[int, Interval(ge=1, le=256)] = 1
    """Prefixes that the search for the most probable transcript keeps; 1 takes the best path."""
    ngram: Annotated[int, Interval(ge=0, le=6)] = 0
    """Let the search know how likely each symbol follows so many minus one, counted in the training transcripts; 0
    counts nothing, and a beam of 1 uses nothing."""
    ngram_weight: NonNegative = 0.5
    """Factor of the log probability by those counts."""
    symbol_bonus: float = 0.0
    """Added to the score of the search for each symbol: above 0 where the counts make transcripts too short."""
    fitted_symbols: Annotated[tuple[str, ...], Suppress] = ()
    """What the training transcripts are spelled in, found by `fit`; number 1 is the first."""
    fitted_most: Annotated[int, Ge(0), Suppress] = 0
    """Symbols of the longest training transcript, found by `fit`."""
    fitted_ngrams: Annotated[tuple[tuple[int, ...], ...], Suppress] = ()
    """How often symbols follow each other, found by `fit` (`jaxaccel.tasks.decoding.count_ngrams`)."""

    def check_values(self) -> None:
        """Checks that what is added to the score of an n-gram model is not given without one."""
        super().check_values()
        if self.symbol_bonus and not self.ngram:
            raise UserError(
                f"{option('task.symbol_bonus')} is added by the n-gram model: give {option('task.ngram')} too, 4 say"
            )

    @property
    def transcripts(self) -> Transcripts:
        """How transcripts are spelled."""
        return Transcripts(self.units, self.lowercase, self.fitted_symbols)

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """``channels``, ``subsampling`` and, once the transcripts were read, ``classes`` and ``symbols``."""
        facts = super().facts(features)
        known = dict(features.items())
        if self.text not in known:
            raise UserError(
                f"the data set has no {self.text!r}, it has {', '.join(known)}: say with {option('task.text')} what "
                "its transcripts are called"
            )
        return facts | {"subsampling": self.subsampling} | self.learned_facts()

    def learned_facts(self) -> dict[str, Any]:
        """``classes`` and ``symbols``, once the transcripts were read."""
        symbols = self.fitted_symbols
        return {"classes": len(symbols) + 1, "symbols": symbols} if symbols else {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The transcript."""
        return (self.text,)

    def fit(self, source: Any) -> Self:
        """The task with its symbols, its lengths and its statistics, for which the whole split is read."""
        return super(SpeechRecognition, self._fit_transcripts(source)).fit(source)

    def after(self, fitted: Mapping[str, Any]) -> "SpeechRecognition":
        """The task with the symbols of the run that weights are taken from."""
        return dataclasses.replace(self, fitted_symbols=fitted.get("fitted_symbols", ()))

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``audio`` and ``samples`` as of `Sounds`, ``label`` (n,) int32 and ``labels`` () int32.

        A transcript with symbols that the training split lacks has -1 labels: it counts in the scores only.
        """
        found = self.transcripts.encode(as_transcript(example[self.text]))
        label = np.zeros(1, np.int32) if found is None else np.asarray(found, np.int32)
        count = UNKNOWN if found is None else len(label)
        return {**self.sound_element(example), "label": label, "labels": np.asarray(count, np.int32)}

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """The sound and the labels filled up. What is cut off a sound is cut off no transcript: it has no loss."""
        padded = self.pad_sound(element, length)
        if "label" not in element:
            return padded
        cut = int(element["samples"]) > int(padded["samples"])
        room = max(min(self.fitted_most or length, self.count_outputs(length)), 1)
        label = element["label"][:room]
        return {
            **padded,
            "label": np.pad(label, (0, room - len(label))),
            "labels": np.asarray(UNKNOWN, np.int32) if cut else element["labels"],
        }

    def count_outputs(self, frames: Any) -> Any:
        """How many outputs the model has for so many frames."""
        return -(-frames // self.subsampling)

    def lengths(self, source: Any, advance: Any = lambda n: None) -> np.ndarray:
        """(n,) int64: the frames of each sound. It says how many transcripts the loss cannot use, and why."""
        found = super().lengths(source, advance)
        if self.fitted_symbols:
            self._report_unusable(source, found)
        return found

    def check(self, outputs: PyTree, facts: Mapping[str, Any]) -> None:
        """The model must give logits for each output."""
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 3 or shape[2] != facts["classes"]:
            raise UserError(
                f"the model must give logits of shape (batch, outputs, {facts['classes']}), it gives {outputs}"
            )
        want = self.count_outputs(self.bounds[-1])
        if shape[1] != want:
            raise UserError(
                f"the model gives {shape[1]} outputs for {self.bounds[-1]} frames, and {option('task.subsampling')} "
                f"{self.subsampling} means {want}: let it take `subsampling` as an argument"
            )

    def loss(self, outputs: jax.Array, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        """-log of the probability of the transcripts, in nats a symbol; ``unusable``, the share that had none.

        The loss of a transcript is the sum over all alignments; a batch is divided by its symbols, so that each counts
        as much wherever it stands. Empty transcripts count as one symbol.
        """
        found = compute_ctc(outputs, self.count_outputs(batch["frames"]), batch["label"], batch["labels"])
        usable = batch["mask"] * found.feasible
        symbols = usable * jnp.maximum(batch["labels"], 1)
        loss = Mean((found.values * usable).sum(), symbols.sum())
        return loss, {"loss": loss, "unusable": Mean.of(~found.feasible, batch["mask"])}

    def weights(self, batch: Batch) -> jax.Array:
        """(B, outputs): 0 for outputs behind the end of a sound."""
        frames = batch["frames"]
        outputs = self.count_outputs(batch["feature"].shape[1])
        return batch["mask"][:, None] * (jnp.arange(outputs) < self.count_outputs(frames)[:, None])

    def predict(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        """``symbols`` (B, outputs) int32, filled up with -1, when they begin and end, and ``score`` (B,).

        ``starts`` and ``ends`` are outputs, -1 where there is no symbol. The score is the mean log probability of the
        outputs on the best path.
        """
        logits = apply(*self.inputs(batch))
        return self.decode(logits, self.count_outputs(batch["frames"]))

    def decode(self, logits: jax.Array, outputs: jax.Array) -> dict[str, jax.Array]:
        """As `predict`, of the model's outputs, of which `outputs` (B,) count."""
        if self.beam == 1:
            path = follow_best_path(logits, outputs, BLANK)
            score = path.scores / jnp.maximum(outputs, 1)
            return {"symbols": path.symbols, "starts": path.starts, "ends": path.ends, "score": score}
        symbols = self.search(logits, outputs)
        spans = align_ctc(logits, outputs, symbols, (symbols >= 0).sum(1), BLANK)
        score = spans.scores / jnp.maximum(outputs, 1)
        return {"symbols": symbols, "starts": spans.starts, "ends": spans.ends, "score": score}

    def search(self, logits: jax.Array, outputs: jax.Array) -> jax.Array:
        """(B, T') int32: the symbols that a search of the outputs finds to be the most probable."""
        return search_prefixes(logits, outputs, self.beam, BLANK, self.find_ngrams()).symbols[:, 0]

    def find_ngrams(self) -> NgramScores | None:
        """What the search knows of transcripts; None where no n-gram model is wanted.

        Raises:
          UserError: others were counted in training.
        """
        if not self.ngram:
            return None
        if self.ngram != self._counted:
            raise UserError(
                f"{option('task.ngram', self.ngram)} was not counted in the training transcripts: give "
                f"{option('task.ngram', self._counted)}, or train with it"
            )
        table = estimate_ngrams(self.fitted_ngrams, len(self.fitted_symbols) + 1)
        return NgramScores(table, self.ngram_weight, self.symbol_bonus)

    def evaluate(self, apply: Apply, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """``loss`` and ``unusable``, and the symbols, of which `score` computes error rates."""
        logits = apply(*self.inputs(batch))
        _, means = self.loss(logits, batch)
        outputs = self.count_outputs(batch["frames"])
        if self.beam == 1:
            return means | {"symbols": collapse_best_path(logits, outputs, BLANK).symbols}
        return means | {"symbols": self.search(logits, outputs)}

    def score(self, rows: Mapping[str, Sequence[np.ndarray]], source: Any) -> dict[str, float]:
        """``wer`` and ``cer``: errors a word and a character of the transcripts, over the whole split."""
        references = [self.transcripts.clean(text) for text in self._read_transcripts(source)]
        found = [self.transcripts.decode(row) for row in rows["symbols"]]
        log_first(found, references)
        return measure_errors(references, found)

    def describe(
        self, given: Any, prediction: PyTree, facts: Mapping[str, Any], *, top: int
    ) -> dict[str, Any]:
        """``text``, ``score``, and ``words`` with the seconds from which and to which each was said."""
        if not np.isfinite(prediction["score"]):
            raise UserError("the model's outputs are NaN or infinite")
        symbols = prediction["symbols"]
        count = int((symbols >= 0).sum())
        starts, ends = prediction["starts"][:count], prediction["ends"][:count]
        return {
            "text": self.transcripts.decode(symbols),
            "score": round(float(prediction["score"]), 6),
            "words": self.time_words(symbols[:count], starts, ends),
        }

    def time_words(
        self, symbols: Sequence[int] | np.ndarray, starts: Sequence[int], ends: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The words of symbols that were said in outputs `starts` to `ends`, with the seconds of these."""
        seconds = self.subsampling * self.mel.hop / self.rate
        return [
            {
                "word": word,
                "from": round(seconds * int(starts[first]), 3),
                "to": round(seconds * int(ends[last]), 3),
            }
            for word, first, last in self.transcripts.split_words(symbols)
        ]

    def show(self, example: Mapping[str, Any]) -> str:
        """The transcript."""
        return as_transcript(example[self.text])

    @property
    def _counted(self) -> int:
        """Of what order the n-grams are that were counted; 0 where none were."""
        return len(self.fitted_ngrams[0]) - 1 if self.fitted_ngrams else 0

    def _fit_transcripts(self, source: Any) -> Self:
        if self.fitted_symbols and self.fitted_most and self._counted == self.ngram:
            return self
        task, read = self, list(self._read_transcripts(source))
        if not self.fitted_symbols:
            symbols = self.transcripts.collect(read)
            if not symbols:
                raise UserError(
                    f"all transcripts of {source.name} are empty: {option('task.text')} names another part"
                )
            task = dataclasses.replace(self, fitted_symbols=symbols)
        spelled = [found for text in read if (found := task.transcripts.encode(text)) is not None]
        if not spelled:
            odd = self.transcripts.find_unknown(read[0])
            raise UserError(
                f"no transcript of {source.name} is spelled in the symbols of the run that weights are taken from: "
                f"{odd!r} of {read[0]!r:.60} is none of them"
            )
        if self.ngram and self.beam == 1:
            counted, wider = option("task.ngram", self.ngram), option("task.beam", 16)
            log.warning(spell_options(f"{counted} is counted, and a beam of 1 does not use it: {wider} does"))
        most = max(1, max(map(len, spelled)))
        ngrams = count_ngrams(spelled, self.ngram) if self.ngram else ()
        task = dataclasses.replace(task, fitted_most=most, fitted_ngrams=ngrams)
        task.find_ngrams()  # refuses, before anything is trained, a table that would not fit
        return task

    def _read_transcripts(self, source: Any) -> Iterator[str]:
        return map(as_transcript, read_column(source, self.text))

    def _report_unusable(self, source: Any, lengths: np.ndarray) -> None:
        """Says which transcripts have no loss."""
        unknown, long = [], []
        for i, text in enumerate(self._read_transcripts(source)):
            found = self.transcripts.encode(text)
            if found is None:
                unknown.append(text)
            elif count_least_outputs(found) > self.count_outputs(int(min(lengths[i], self.bounds[-1]))):
                long.append(text)
        if unknown:
            odd = self.transcripts.find_unknown(unknown[0])
            log.warning(
                f"{len(unknown):,} of {len(lengths):,} transcripts hold what the training transcripts lack, such as "
                f"{odd!r} in {unknown[0]!r:.60}: they count as errors, and not in the loss"
            )
        if long:
            message = (
                f"{len(long):,} of {len(lengths):,} transcripts have more symbols than their sound has outputs, such "
                f"as {long[0]!r:.60}: they have no loss; {option('task.subsampling')} "
                f"{max(self.subsampling // 2, 1)} or a smaller {option('task.hop_ms')} gives more outputs"
            )
            log.warning(spell_options(message))
