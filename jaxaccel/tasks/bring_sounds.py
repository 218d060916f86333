"""Sounds that a person has at hand, as batches."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxaccel.data.audio import decode_audio, resample, to_int16
from jaxaccel.errors import UserError
from jaxaccel.tasks.batches import fit_length, stack_examples
from jaxaccel.tasks.bring_arrays import Given

Element = dict[str, np.ndarray]
MAX_BATCH_FRAMES = 60_000
"""Frames of one batch, padding included, unless a single sound has more: ten minutes at 10 ms."""


class Recording(NamedTuple):
    """A sound in memory."""

    audio: np.ndarray
    """(n,) int16, or floats from -1 to 1."""
    rate: int
    """Samples a second."""


def bring_sounds(
    given: Any,
    size: int,
    rate: int,
    length: Callable[[Element], int],
    pad: Callable[[Element, int], Element],
    bounds: Sequence[int],
) -> Given:
    """Sounds as batches of up to `size`, each filled up to the least of `bounds` that its longest sound needs.

    What is longer than the last of them is filled up to a multiple of it: nothing is cut off. Batches are smaller
    where more than `MAX_BATCH_FRAMES` would be computed at a time.

    Args:
      given: a sound or an iterable of sounds: the path of a file, its bytes, samples (n,) of the model's rate, or
        `Recording`s; or ``{"audio": ...}`` of one of these, also with ``rate``.
      size: sounds in a batch at most.
      rate: of the model, in Hz.
      length: of what `to_element` made.
      pad: fills it up to a length.
      bounds: lengths, rising.

    Raises:
      UserError: it is no sound.
    """
    if isinstance(given, Mapping):
        if "audio" not in given:
            raise UserError(f"a batch of sounds has an entry audio, got {', '.join(given) or 'none'}")
        given = _with_rate(given["audio"], given.get("rate"))
    single = _is_one(given)
    if not single and not isinstance(given, Iterable):
        raise UserError(f"give a sound or several, not {given!r:.60}")

    def batches() -> Iterator[dict[str, Any]]:
        rows: list[Element] = []
        whole = 0
        for i, sound in enumerate([given] if single else given):
            row = to_element(as_recording(sound, rate, i), rate)
            needed = _fit(bounds, length(row))
            if rows and (
                len(rows) == size or _count_computed(len(rows) + 1, max(whole, needed)) > MAX_BATCH_FRAMES
            ):
                yield stack_examples([pad(row, whole) for row in rows])
                rows, whole = [], 0
            rows, whole = [*rows, row], max(whole, needed)
        if rows:
            yield stack_examples([pad(row, whole) for row in rows])

    return Given(batches(), single)


def _fit(bounds: Sequence[int], length: int) -> int:
    """A length that holds so many frames; of those beyond the last bound there are few, each at most 1/4 longer."""
    if length <= bounds[-1]:
        return fit_length(bounds, length)
    times = -(-length // bounds[-1])
    coarse = 1 << max(times.bit_length() - 3, 0)
    return -(-times // coarse) * coarse * bounds[-1]


def _count_computed(sounds: int, length: int) -> int:
    """Frames that are computed for so many sounds, of which there is a power of two."""
    return (1 << (sounds - 1).bit_length()) * length


def as_recording(sound: Any, rate: int, number: int = 0) -> Recording:
    """A sound that somebody gave; samples without a rate are of `rate`.

    Raises:
      UserError: it is none, or cannot be read.
    """
    if isinstance(sound, Recording):
        return Recording(to_int16(sound.audio, f"sound {number}"), int(sound.rate))
    if isinstance(sound, (str, os.PathLike)):
        return Recording(*decode_audio(Path(sound)))
    if isinstance(sound, bytes):
        return Recording(*decode_audio(sound))
    if hasattr(sound, "__array__") or isinstance(sound, Sequence):
        return Recording(to_int16(np.asarray(sound), f"sound {number}"), rate)
    raise UserError(f"sound {number} is {sound!r:.60}: give paths of files, samples, or Recordings")


def to_element(sound: Recording, rate: int) -> Element:
    """``audio`` (n,) int16 at `rate` and ``samples`` () int32."""
    audio = resample(sound.audio, sound.rate, rate)
    return {"audio": audio, "samples": np.asarray(len(audio), np.int32)}


def _is_one(given: Any) -> bool:
    if isinstance(given, (str, bytes, os.PathLike, Recording)):
        return True
    if isinstance(given, np.ndarray):
        return given.ndim == 1 and given.dtype != object
    return isinstance(given, list) and bool(given) and isinstance(given[0], (int, float))


def _with_rate(audio: Any, rate: Any) -> Any:
    if rate is None:
        return audio
    if _is_one(audio):
        return Recording(np.asarray(audio), int(rate))
    rates = np.broadcast_to(np.asarray(rate), len(audio))
    return [Recording(np.asarray(one), int(each)) for one, each in zip(audio, rates, strict=True)]
