"""The outputs of a model of speech for samples that arrive bit by bit, equal to those of the whole sound."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.deployment.trained import Trained
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.log_mel import mask_frames
from jaxaccel.tasks.sounds import as_float
from jaxaccel.tasks.speech_recognition import SpeechRecognition

PyTree = Any
CHUNK_MS = 320.0
"""Milliseconds of sound that are computed at a time."""


class LogitStream:
    """Logits of one sound, a chunk of frames at a time, by one compiled program.

    A frame looks at samples on both sides of its middle. So the samples that later frames look at are kept, and a
    chunk waits for half a window of samples behind its last frame.

    Args:
      trained: a run of `SpeechRecognition` whose model has `start` and `step`.
      chunk_ms: milliseconds of a chunk; rounded up to whole outputs of the model.

    Raises:
      UserError: the run does not recognize speech, normalizes by the whole sound, or its model hears only whole ones.
    """

    def __init__(self, trained: Trained, chunk_ms: float = CHUNK_MS) -> None:
        self.task = check_task(trained)
        mel, by = self.task.mel, self.task.subsampling
        self.frames = by * max(1, -(-round(chunk_ms * mel.rate / 1000) // (mel.hop * by)))
        """Frames of a chunk."""
        self._span, self._step = mel.count_span(self.frames), self.frames * mel.hop
        # Behind the window the Fourier transform sees zeros only, whatever stands there.
        behind = mel.size - mel.window - (mel.size - mel.window) // 2
        self._needed = max(self._span - behind, self._step)
        self._params = trained.params
        self._first, self._compute = _compile_step(trained, self.task, self.frames, self._span)
        self.start()

    def start(self) -> None:
        """Begins a new sound."""
        self.samples = 0
        """Samples that came so far."""
        self.seconds: list[float] = []
        """Of computing each chunk."""
        self._held = np.zeros(self.task.mel.margin, np.int16)
        self._done = 0
        self._carry = self._first

    @property
    def chunk_seconds(self) -> float:
        """Seconds of sound in a chunk."""
        return self._step / self.task.rate

    @property
    def heard_seconds(self) -> float:
        """Seconds of sound that outputs were computed of."""
        return min(self._done * self.task.mel.hop, self.samples) / self.task.rate

    @property
    def half_window_seconds(self) -> float:
        """Seconds of sound that a frame looks at behind its middle."""
        return self.task.mel.window / 2 / self.task.rate

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """The logits (outputs, classes) float32 that int16 samples (n,) complete, often none."""
        self.samples += len(samples)
        self._held = np.concatenate([self._held, samples])
        found = []
        while len(self._held) >= self._needed:
            found.append(self._run(self.frames))
            self._held = self._held[self._step :]
        return self._join(found)

    def finish(self) -> np.ndarray:
        """The logits of what is left, as if silence followed; a sound of no samples has none."""
        left = int(self.task.mel.count_frames(self.samples)) - self._done if self.samples else 0
        found = []
        while left > 0:
            found.append(self._run(min(left, self.frames)))
            self._held = self._held[self._step :]
            left -= self.frames
        return self._join(found)

    def _run(self, frames: int) -> np.ndarray:
        """The logits of the next frames, of which so many are no silence behind the end."""
        taken = self._held[: self._span]
        begin = time.perf_counter()
        chunk = np.pad(taken, (0, self._span - len(taken)))
        logits, self._carry = self._compute(
            self._params, chunk[None], np.array([frames], np.int32), self._carry
        )
        found = np.asarray(logits[0])[: self.task.count_outputs(frames)]
        self.seconds.append(time.perf_counter() - begin)
        self._done += frames
        return found

    def _join(self, found: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, len(self.task.fitted_symbols) + 1), np.float32), *found])


def check_task(trained: Trained) -> SpeechRecognition:
    """The task, of which a stream can be heard.

    Raises:
      UserError: it is another one, or normalizes by what a stream has not heard yet.
    """
    task = trained.task
    if not isinstance(task, SpeechRecognition):
        raise UserError(
            f"a stream needs a run of SpeechRecognition, and {trained.directory} is one of {type(task).__name__}: "
            "predict files of sounds instead"
        )
    if task.normalize not in ("data", "none"):
        raise UserError(
            f"{trained.directory} normalizes by the whole sound ({task.normalize}), which a stream does not know: "
            f"train with {option('task.normalize', 'data')}, or predict files"
        )
    return task


def _compile_step(trained: Trained, task: SpeechRecognition, frames: int, span: int) -> tuple[PyTree, Any]:
    """The carry to begin with, and (params, samples, frames that count, carry) -> (logits, carry), compiled."""

    def step(params: PyTree, samples: jax.Array, count: jax.Array, carry: PyTree) -> tuple[jax.Array, PyTree]:
        found = task.mel.compute_frames(as_float(samples), frames)
        silent = jnp.where(mask_frames(count, frames)[..., None], found, 0)
        logits, after = trained.run(params, task.scale(silent, count), carry, method="step")
        # In the dtypes that it came in: one program takes all chunks.
        return logits.astype(jnp.float32), jax.tree.map(lambda new, old: new.astype(old.dtype), after, carry)

    nothing = np.zeros((1, span), np.int16), np.zeros(1, np.int32)
    try:
        carry = jax.tree.map(jnp.asarray, trained.run(trained.params, 1, method="start"))
        compiled = jax.jit(step).lower(trained.params, *nothing, carry).compile()
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        if trained.model is None:
            raise UserError(
                f"the compressed model {trained.directory} hears no streams ({reason}): take a step before its layers "
                f"were folded, {option('which', 'origin')} for one"
            ) from error
        raise UserError(
            f"the model of {trained.directory} hears no streams ({reason}): train one that hears in one direction, "
            "such as lstm_ctc(bidirectional=False)"
        ) from error
    jax.block_until_ready(compiled(trained.params, *nothing, carry))
    return carry, compiled
