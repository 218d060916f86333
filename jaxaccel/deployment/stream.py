"""Speech recognized while it is heard. ``Stream(ja.load(run)).feed(samples).text``."""

import dataclasses
from typing import Any

import numpy as np

from jaxaccel.core.options import Positive, checked
from jaxaccel.data.audio import to_int16
from jaxaccel.deployment.logit_stream import CHUNK_MS, LogitStream
from jaxaccel.deployment.trained import Trained
from jaxaccel.errors import UserError
from jaxaccel.tasks.ctc import BLANK


@dataclasses.dataclass(frozen=True)
class Heard:
    """What was recognized so far."""

    seconds: float
    """Seconds of sound behind it."""
    text: str
    """All that was said."""
    words: list[dict[str, Any]]
    """``{"word": ..., "from": seconds, "to": seconds}`` of each; the last one may go on."""
    score: float
    """The mean log probability of the outputs on the best path; 0 before the first one."""


@dataclasses.dataclass(frozen=True)
class StreamStats:
    """How fast it was recognized."""

    chunks: int
    """How many were computed."""
    real_time_factor: float
    """Seconds of computing for each second of sound."""
    latency_ms: float
    """Milliseconds from when a chunk begins to when its text is there: the chunk, half a window and the computing;
    the median over all chunks. What is said at the end of a chunk waits less, by as much as the chunk lasts."""
    worst_latency_ms: float
    """The same, of the slowest chunk."""


class Stream:
    """Recognizes one utterance while its samples arrive, by the best path (CTC).

    Text, times and score are those that the whole sound gives with ``--task.beam 1``, however the samples are cut.
    A stream hears one utterance; memory and time grow with its text. `start` begins anew without another compilation.

    Args:
      trained: what `load` gave, of `SpeechRecognition` with ``normalize`` "data" or "none"; its model hears in one
        direction (``bidirectional=False``).
      chunk_ms: milliseconds of sound that are computed at a time, rounded up to whole outputs. Less answers sooner,
        and costs more computing for each second.

    Raises:
      UserError: that model hears no streams.
    """

    @checked
    def __init__(self, trained: Trained, *, chunk_ms: Positive = CHUNK_MS) -> None:
        self._outputs = LogitStream(trained, chunk_ms)
        self.task = self._outputs.task
        self.start()

    def start(self) -> None:
        """Begins a new utterance."""
        self._outputs.start()
        self._symbols: list[int] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._last, self._count, self._score = BLANK, 0, 0.0
        self._ended = False
        self._heard = Heard(0.0, "", [], 0.0)

    def feed(self, samples: Any) -> Heard:
        """What was said so far, with these samples.

        Args:
          samples: the next ones, (n,) int16 or floats from -1 to 1, at `task.rate`; any number, also none.

        Raises:
          UserError: they are no samples, or the utterance has ended.
        """
        if self._ended:
            raise UserError("the utterance has ended: call start() before the next one")
        if np.size(samples):
            self._follow(self._outputs.feed(to_int16(np.asarray(samples), "what was fed")))
        return self._heard

    def finish(self) -> Heard:
        """All that was said: nothing more comes."""
        if not self._ended:
            self._follow(self._outputs.finish())
            self._ended = True
        return self._heard

    @property
    def stats(self) -> StreamStats:
        """How fast it is, without the compilation."""
        outputs = self._outputs
        spent = np.array(outputs.seconds or [0.0])
        waits = outputs.chunk_seconds + outputs.half_window_seconds
        return StreamStats(
            len(outputs.seconds),
            round(float(spent.sum()) / max(outputs.heard_seconds, 1 / self.task.rate), 6),
            round(1000 * (waits + float(np.median(spent))), 3),
            round(1000 * (waits + float(spent.max())), 3),
        )

    def _follow(self, logits: np.ndarray) -> None:
        """Goes on along the best path."""
        if not len(logits):
            return
        if not np.isfinite(logits).all():
            raise UserError("the model's outputs are NaN or infinite")
        for symbol in logits.argmax(-1).tolist():
            if symbol != BLANK and symbol == self._last:
                self._ends[-1] += 1
            elif symbol != BLANK:
                self._symbols.append(symbol)
                self._starts.append(self._count)
                self._ends.append(self._count + 1)
            self._last = symbol
            self._count += 1
        best = logits.max(-1, keepdims=True)
        self._score -= float(np.log(np.exp(logits - best).sum(-1)).sum())
        self._heard = Heard(
            round(self._outputs.heard_seconds, 3),
            self.task.transcripts.decode(self._symbols),
            self.task.time_words(self._symbols, self._starts, self._ends),
            round(self._score / self._count, 6),
        )
