"""Sounds as 16-bit samples of one channel, by libsndfile and SciPy."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from jaxaccel.core.formats.bounds import open_file, shorten, size_of
from jaxaccel.errors import UserError

MAX_SECONDS = 3600
"""Of one sound; longer ones are refused by their header."""
MIN_RATE, MAX_RATE = 1_000, 384_000  # Hz
MAX_VALUES = MAX_SECONDS * 48_000 * 2
"""Of all channels of one sound: an hour of stereo at 48 kHz."""
_FULL_SCALE = 32_768  # what 1.0 is in 16 bits
_BLOCK = 1 << 16  # frames that are decoded at a time
_UNKNOWN_FRAMES = 1 << 62  # libsndfile says so where a file does not say its length
_WHOLE_FORMATS = ("FLAC", "WAV", "WAVEX", "AIFF")  # announce exactly what they hold


def decode_audio(content: bytes | Path) -> tuple[np.ndarray, int]:
    """Decodes a sound to one channel of 16 bits.

    The mean of all channels is taken. Samples of more than 16 bits, and floats, are rounded and clipped. Memory is
    that of the result: the header is read first, and samples in blocks.

    Args:
      content: a file, or its bytes, of any format that libsndfile reads: WAV, FLAC, Ogg, MP3, AIFF, ...

    Returns:
      The samples, int16 (n,), and their rate in Hz.

    Raises:
      UserError: it is empty, damaged, without samples, longer than `MAX_SECONDS`, holds NaN or has an odd rate; or
        soundfile is not installed.
    """
    name = str(content) if isinstance(content, Path) else "the sound"
    sf = import_soundfile()
    with _open(content, name) as file:
        try:
            with sf.SoundFile(file) as sound:
                _check_header(sound, name)
                return _read_samples(sound, name), int(sound.samplerate)
        except sf.SoundFileError as error:
            raise _damaged(name, getattr(error, "error_string", str(error))) from error


def resample(audio: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Resamples a sound from `rate` to `to`, both in Hz, by a polyphase filter (`scipy.signal.resample_poly`).

    Args:
      audio: int16 (n,).
      rate: of `audio`.
      to: of what is returned.

    Returns:
      int16 (ceil(n * to / rate),), rounded and clipped.

    Raises:
      UserError: a rate is outside `MIN_RATE` to `MAX_RATE`, or the samples are not int16 (n,).
    """
    if audio.dtype != np.int16 or audio.ndim != 1:
        raise UserError(
            f"a sound is int16 of shape (n,), got {audio.dtype} {audio.shape}: see data.from_arrays"
        )
    check_rate(rate, "the sound")
    check_rate(to, "the sound to make")
    if rate == to or not len(audio):
        return audio
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, to)
    made = resample_poly(audio.astype(np.float32), to // divisor, rate // divisor)
    return _round(made)


def to_int16(audio: np.ndarray, name: str = "the sound") -> np.ndarray:
    """Samples in memory as int16 (n,): floats from -1 to 1, or whole numbers of 16 bits.

    Args:
      audio: one channel, (n,).
      name: what messages call it.

    Raises:
      UserError: there are no samples, several channels, NaN, or numbers outside.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind not in "if":
        raise UserError(
            f"{name} is {audio.dtype} {audio.shape}: give one channel (n,), of int16 or of floats from -1 to 1"
        )
    if not len(audio):
        raise UserError(f"{name} holds no samples: leave it out")
    if audio.dtype == np.int16:
        return audio
    low, high = audio.min(), audio.max()
    if audio.dtype.kind == "i":
        if low < -_FULL_SCALE or high >= _FULL_SCALE:
            raise UserError(f"{name} holds whole numbers from {low} to {high}: give 16 bits, -32768 to 32767")
        return audio.astype(np.int16)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{name} holds NaN or infinity: give finite numbers")
    if low < -1 or high > 1:
        raise UserError(f"{name} holds floats from {low:g} to {high:g}: scale them to -1 to 1")
    return _round(audio.astype(np.float64) * _FULL_SCALE)


def check_rate(rate: int, name: str) -> None:
    """Checks a rate in Hz.

    Raises:
      UserError: it is outside `MIN_RATE` to `MAX_RATE`.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UserError(
            f"{name} has a rate of {rate:,} Hz, and {MIN_RATE:,} to {MAX_RATE:,} are read: save it with one of these"
        )


def import_soundfile() -> ModuleType:
    """The package soundfile, imported when it is first used.

    Raises:
      UserError: it, or its libsndfile, is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise UserError(
            "reading sounds needs the package soundfile: pip install 'jaxaccel[audio]'"
        ) from error
    return soundfile


@contextlib.contextmanager
def _open(content: bytes | Path, name: str) -> Iterator[IO[bytes]]:
    """The bytes of a sound as a file, of which there are some."""
    if isinstance(content, bytes):
        file, size = io.BytesIO(content), len(content)
    else:
        try:
            file = open_file(content)
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
        size = size_of(file)
    with file:
        if not size:
            raise UserError(f"{name} is empty: repair or remove it")
        yield file


def _check_header(sound: Any, name: str) -> None:
    """Checks what the header says, before a sample is read."""
    rate, frames = int(sound.samplerate), int(sound.frames)
    check_rate(rate, name)
    if frames >= _UNKNOWN_FRAMES:
        return  # counted while it is read
    if frames <= 0:
        raise UserError(f"{name} holds no samples: remove it")
    _check_length(frames, rate, int(sound.channels), name)


def _check_length(frames: int, rate: int, channels: int, name: str) -> None:
    if frames > MAX_SECONDS * rate:
        raise UserError(
            f"{name} lasts longer ({frames / rate / 60:,.0f} minutes) than the {MAX_SECONDS // 60} minutes that are "
            "read: divide it"
        )
    if frames * channels > MAX_VALUES:
        raise UserError(
            f"{name} holds {frames * channels:,} samples in {channels} channels, and {MAX_VALUES:,} are read: "
            "divide it, or save it with one channel or a lower rate"
        )


def _read_samples(sound: Any, name: str) -> np.ndarray:
    exact = sound.subtype == "PCM_16" and sound.channels == 1
    blocks: list[np.ndarray] = []
    count = 0
    while len(block := sound.read(_BLOCK, dtype="int16" if exact else "float64", always_2d=True)):
        count += len(block)
        _check_length(count, sound.samplerate, sound.channels, name)  # the header may have said less
        if exact:
            blocks.append(block[:, 0])
            continue
        if not np.isfinite(block).all():
            raise UserError(f"{name} holds NaN or infinity: repair or remove it")
        blocks.append(_round(block.mean(axis=1) * _FULL_SCALE))
    if not count:
        raise _damaged(name, "no sample can be decoded")
    if sound.format in _WHOLE_FORMATS and count < sound.frames < _UNKNOWN_FRAMES:
        raise _damaged(name, f"it holds {count:,} of its {sound.frames:,} samples")
    return np.concatenate(blocks)


def _round(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(samples), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _damaged(name: str, reason: str) -> UserError:
    return UserError(f"{name} is damaged or no sound ({shorten(reason).rstrip('.')}): repair or remove it")
