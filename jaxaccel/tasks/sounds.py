"""What all tasks on sounds share: samples of one rate, log-mel features on the device, buckets by length."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from tyro.conf import Suppress

from jaxaccel.core.options import Count, Positive
from jaxaccel.data.audio import MAX_RATE, MIN_RATE
from jaxaccel.data.buckets import choose_bounds
from jaxaccel.data.class_folders import Kind
from jaxaccel.data.examples import READ_EXAMPLES
from jaxaccel.data.samples import as_float
from jaxaccel.data.sounds import SOUNDS
from jaxaccel.errors import UserError, option, spell_options
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.bring_sounds import MAX_BATCH_FRAMES, Recording, as_recording, bring_sounds, to_element
from jaxaccel.tasks.log_mel import MIN_DEVIATION, LogMel, mask_frames, normalize
from jaxaccel.tasks.reading import Input
from jaxaccel.tasks.task import Batch, PyTree, Task

T = TypeVar("T", bound="Sounds")
log = logging.getLogger(__name__)
MEASURED = 1000
"""Sounds whose features are measured for ``--task.normalize data``."""


@dataclasses.dataclass(frozen=True)
class Sounds(Task):
    """Base of tasks on sounds. Their length is in frames, `hop_ms` apart.

    Batches hold ``audio`` (B, N) int16 and ``samples`` (B,) int32. Behind `features` they hold ``feature``
    (B, T, bands) float32, 0 where padded, and ``frames`` (B,) int32. The model is called with the features and a mask
    (B, T) bool, True where there is a frame.
    """

    kind: ClassVar[Kind | None] = SOUNDS
    audio: str = "audio"
    """Part of an example that is its sound."""
    rate: Annotated[int, Interval(ge=MIN_RATE, le=MAX_RATE)] = 16_000
    """Resample sounds to this many samples a second."""
    window_ms: Positive = 25.0
    """Length of a frame, in milliseconds."""
    hop_ms: Positive = 10.0
    """Time from one frame to the next, in milliseconds."""
    bands: Count = 80
    """Number of mel bands."""
    normalize: Literal["utterance", "band", "data", "none"] = "utterance"
    """Subtract the mean of a sound's features and divide by their deviation: over all bands together (utterance) or
    each by itself (band); or by those of the training data, which a stream can use too (data)."""
    max_seconds: Positive = 30.0
    """Cut sounds behind so many seconds."""
    fill_to: tuple[Positive, ...] = ()
    """Fill sounds up to these lengths, in seconds, each of which is a program [default: six at most, by which least of
    the training batches is padding]."""
    fitted_bounds: Annotated[tuple[int, ...], Suppress] = ()
    """The lengths, in frames, found by `fit`."""
    fitted_mean: Annotated[tuple[float, ...], Suppress] = ()
    """The mean of each band over the training data, found by `fit`."""
    fitted_deviation: Annotated[tuple[float, ...], Suppress] = ()
    """The deviation of each band over the training data, found by `fit`."""

    def check_values(self) -> None:
        """Checks that lengths rise, and that frames hold samples."""
        if any(a >= b for a, b in itertools.pairwise(self.fill_to)):
            raise UserError(f"{option('fill_to')} must rise, got {self.fill_to}")
        if self.fill_to and self.fill_to[-1] > self.max_seconds:
            raise UserError(
                f"{option('fill_to')} goes up to {self.fill_to[-1]:g} and sounds are cut at {self.max_seconds:g}: "
                f"raise {option('max_seconds')}"
            )
        mel = self.mel
        if mel.hop < 1 or mel.window < 2:
            raise UserError(
                f"{option('window_ms')} {self.window_ms:g} and {option('hop_ms')} {self.hop_ms:g} are less than "
                f"samples at {self.rate} Hz: raise them"
            )
        if self.bands > mel.size // 4:
            raise UserError(
                f"{option('bands')} {self.bands} are more than the {mel.size // 2 + 1} frequencies of a frame can tell "
                f"apart: lower it to {mel.size // 4}, or raise {option('window_ms')}"
            )

    @property
    def mel(self) -> LogMel:
        """How spectrograms are computed."""
        return LogMel(
            self.rate,
            round(self.window_ms * self.rate / 1000),
            round(self.hop_ms * self.rate / 1000),
            self.bands,
        )

    @property
    def bounds(self) -> tuple[int, ...]:
        """Lengths to which sounds are filled up, in frames."""
        seconds = self.fill_to or (self.max_seconds,)
        return self.fitted_bounds or tuple(int(self.mel.count_frames(round(s * self.rate))) for s in seconds)

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """``channels``, the number of bands."""
        known = dict(features.items())
        if self.audio not in known:
            raise UserError(
                f"the data set has no {self.audio!r}, it has {', '.join(known)}: say with {option('task.audio')} what "
                "its sounds are called"
            )
        return {"channels": self.bands}

    def fit(self: T, source: Any) -> T:
        """The task with its lengths and, where it normalizes by the data, their statistics."""
        task: Any = self
        if not self.fill_to and not self.fitted_bounds:
            longest = self.mel.count_frames(round(self.max_seconds * self.rate))
            bounds = choose_bounds(np.minimum(task.lengths(source), longest))
            task = dataclasses.replace(task, fitted_bounds=bounds)
        if self.normalize == "data" and not self.fitted_mean:
            task = task.fit_normalization(source)
        return task

    def fit_normalization(self: T, source: Any) -> T:
        """The task with the mean and the deviation of each band over the first sounds of a split."""
        task: Any = dataclasses.replace(self, normalize="none")
        compute = jax.jit(lambda batch: _sum_bands(task.features(batch)))
        found = []
        for start in range(0, min(len(source), MEASURED), 1):
            element = self.pad_sound(self.sound_element(source.__getitems__([start])[0]), self.bounds[-1])
            found.append(jax.device_get(compute({name: x[None] for name, x in element.items()})))
        count, total, squares = (np.sum([one[i] for one in found], 0, np.float64) for i in range(3))
        mean = total / count
        deviation = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), MIN_DEVIATION)
        both = {"fitted_mean": mean, "fitted_deviation": deviation}
        rounded = {name: tuple(round(float(x), 6) for x in values) for name, values in both.items()}
        return dataclasses.replace(self, **rounded)

    def recording(self, example: Mapping[str, Any]) -> Recording:
        """The sound of an example, as the data set has it; without a rate it is of the task's."""
        rate = example.get("rate", self.rate)
        return as_recording(Recording(np.asarray(example[self.audio]), int(np.asarray(rate))), self.rate)

    def sound_element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``audio`` (n,) int16 and ``samples`` () int32."""
        return to_element(self.recording(example), self.rate)

    def length(self, element: Mapping[str, np.ndarray]) -> int:
        """How many frames there are."""
        return int(self.mel.count_frames(int(element["samples"])))

    def pad_sound(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """The samples filled up with silence to `length` frames, or cut there."""
        most = self.mel.count_samples(length)
        audio = element["audio"][:most]
        return {
            **element,
            "audio": np.pad(audio, (0, most - len(audio))),
            "samples": np.minimum(element["samples"], most).astype(np.int32),
        }

    def lengths(self, source: Any, advance: Callable[[int], Any] = lambda n: None) -> np.ndarray:
        """(n,) int64: the frames of each sound of a split; nothing is resampled for it."""
        found: list[int] = []
        for start in range(0, len(source), READ_EXAMPLES):
            indices = range(start, min(start + READ_EXAMPLES, len(source)))
            for example in source.__getitems__(indices):
                audio, rate = self.recording(example)
                found.append(int(self.mel.count_frames(-(-len(audio) * self.rate // rate))))
            advance(len(indices))
        cut = sum(frames > self.bounds[-1] for frames in found) if self.fitted_bounds else 0
        if cut:
            seconds = self.bounds[-1] * self.mel.hop / self.rate
            message = (
                f"{cut:,} of {len(found):,} sounds are longer than the {seconds:.1f} s that training has seen, and are "
                f"cut: {option('task.fill_to')} says how long sounds may be"
            )
            log.warning(spell_options(message))
        return np.array(found, np.int64)

    def features(self, batch: Batch) -> Batch:
        """The batch with ``feature`` and ``frames`` in the place of its samples."""
        audio = as_float(batch["audio"])
        found, frames = self.mel.compute(audio, batch["samples"])
        found = self.scale(found, frames)
        others = {name: x for name, x in batch.items() if name not in ("audio", "samples")}
        return {**others, "feature": found, "frames": frames}

    def scale(self, features: jax.Array, frames: jax.Array) -> jax.Array:
        """Normalizes features (B, T, bands), of which `frames` (B,) count."""
        if self.normalize == "none":
            return features
        if self.normalize != "data":
            return normalize(features, frames, self.normalize)
        if not self.fitted_mean:
            raise UserError("the training sounds are measured first: task.fit(source) does that")
        mean, deviation = (jnp.asarray(x, jnp.float32) for x in (self.fitted_mean, self.fitted_deviation))
        there = mask_frames(frames, features.shape[1])[..., None]
        return jnp.where(there, (features - mean) / deviation, 0)

    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """Features and mask."""
        return batch["feature"], mask_frames(batch["frames"], batch["feature"].shape[1])

    def read(self, path: Path) -> Iterator[Input]:
        """The sound in a file."""
        try:
            yield Input(str(path), as_recording(path, self.rate))
        except UserError as error:
            yield Input(str(path), error=error.message)

    def fill_of(self, given: Any) -> float:
        """Of `MAX_BATCH_FRAMES`: so few files are in memory at a time."""
        return len(given.audio) / given.rate * 1000 / self.hop_ms / MAX_BATCH_FRAMES

    def bring(self, given: Any, example: Example, size: int) -> Given:
        """Sounds, as batches of up to `size`, each as long as its longest sound needs.

        Args:
          given: a sound or several: paths of files, samples at the model's rate, `Recording`s; or ``{"audio": ...}``.
          example: shape and dtype of each array of one example.
          size: sounds in a batch at most.

        Raises:
          UserError: it is no sound.
        """
        return bring_sounds(given, size, self.rate, self.length, self.pad_sound, self.bounds)

    def batch_of(self, given: Any, example: Example) -> Batch:
        """Samples (B, N), all of which count; or ``{"audio": ..., "samples": ...}``."""
        batch = dict(given) if isinstance(given, Mapping) else {"audio": given}
        audio = jnp.asarray(batch["audio"])
        whole = jnp.full(audio.shape[0], audio.shape[1], jnp.int32)
        return {"samples": whole} | batch | {"audio": audio}


def _sum_bands(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Frames, and of each band the sum and the sum of squares."""
    feature = batch["feature"]
    return batch["frames"].sum(), feature.sum((0, 1)), jnp.square(feature).sum((0, 1))
