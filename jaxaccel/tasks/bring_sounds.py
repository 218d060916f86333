"""Sounds that a person has at hand, as batches."""

import itertools
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

    What is longer than the last of them is filled up to a multiple of it: nothing is cut off.

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
        numbered = iter(enumerate([given] if single else given))
        while some := list(itertools.islice(numbered, size)):
            rows = [to_element(as_recording(sound, rate, i), rate) for i, sound in some]
            longest = max(map(length, rows))
            multiple = -(-longest // bounds[-1]) * bounds[-1]
            whole = multiple if longest > bounds[-1] else fit_length(bounds, longest)
            yield stack_examples([pad(row, whole) for row in rows])

    return Given(batches(), single)


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
