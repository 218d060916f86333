"""Samples from a pipe, recognized while they arrive, as records that can be written one a line."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxaccel.data.lines import Readable
from jaxaccel.deployment.logit_stream import CHUNK_MS
from jaxaccel.deployment.stream import Stream
from jaxaccel.deployment.trained import Trained
from jaxaccel.errors import UserError

Record = dict[str, Any]
_READ_BYTES = 1 << 14
_MAX_HEADER = 1 << 20
_WAVE_FORMATS = (1, 0xFFFE)  # PCM, and the extensible header, whose bits say the rest
_PACKED = {b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF", b"ID3\x03": "MP3", b"ID3\x04": "MP3"}


def recognize_stream(
    trained: Trained, file: Readable, name: str = "standard input", *, chunk_ms: float = CHUNK_MS
) -> Iterator[Record]:
    """``{"seconds": ..., "text": ...}`` whenever the text has changed; at the end also score, words and stats.

    Args:
      trained: a model that `Stream` takes.
      file: gives samples as `read_samples` takes them.
      name: what messages call it.
      chunk_ms: as of `Stream`.

    Raises:
      UserError: the model hears no streams, or there are no such samples.
    """
    stream = Stream(trained, chunk_ms=chunk_ms)
    step, told, count = max(1, round(chunk_ms * stream.task.rate / 1000)), "", 0
    for samples in _until_interrupted(read_samples(file, stream.task.rate, name)):
        count += len(samples)
        # A long block is what waited in the pipe; its lines are those of one that came in time.
        for start in range(0, len(samples), step):
            heard = stream.feed(samples[start : start + step])
            if heard.text != told:
                told = heard.text
                yield {"seconds": heard.seconds, "text": told}
    if not count:
        raise UserError(f"{name} held no samples: is the microphone on?")
    heard = stream.finish()
    yield {
        "seconds": heard.seconds,
        "text": heard.text,
        "score": heard.score,
        "words": heard.words,
        "final": True,
        "stats": dataclasses.asdict(stream.stats),
    }


def read_samples(file: Readable, rate: int, name: str) -> Iterator[np.ndarray]:
    """The int16 samples (n,) that have arrived, again and again.

    They are raw little-endian 16 bits of one channel, or a WAV file of these. A last odd byte is left out.

    Args:
      file: to read.
      rate: which a WAV file must have, in Hz.
      name: what messages call it.

    Raises:
      UserError: it is a WAV file of something else, or another format.
    """
    held, left = b"", -1
    while left and (arrived := file.read1(_READ_BYTES)):
        held += arrived
        if left < 0:
            found = _find_samples(held, rate, name)
            if found is None:
                continue
            held, left = held[found[0] :], found[1]
        whole = min(len(held) // 2 * 2, left)
        if whole:
            yield np.frombuffer(held[:whole], "<i2").astype(np.int16)
        held, left = held[whole:], left - whole
    if left < 0 and held.startswith(b"RIFF"):
        raise UserError(f"{name} ends within the header of a WAV file: it is damaged")


def _find_samples(start: bytes, rate: int, name: str) -> tuple[int, int] | None:
    """At which byte samples begin, and how many bytes of them there are at most; None where that is not there yet."""
    if len(start) < 4:
        return None
    if kind := _PACKED.get(start[:4]):
        raise UserError(f"{name} is {kind}, and a stream is raw samples or WAV of 16 bits: predict the file")
    if start[:4] != b"RIFF":
        return 0, 1 << 62
    at, known = 12, False
    while len(start) >= at + 8:
        size = int.from_bytes(start[at + 4 : at + 8], "little")
        if start[at : at + 4] == b"data":
            if not known:
                raise UserError(f"{name} is a WAV file without a format: it is damaged")
            # Who records does not know yet how much it will be, and says 0 or very much.
            return at + 8, (size or 1 << 62) if size < 1 << 31 else 1 << 62
        if start[at : at + 4] == b"fmt ":
            if len(start) < at + 24:
                return None
            _check_format(start[at + 8 : at + 24], rate, name)
            known = True
        at += 8 + size + size % 2
        if at > _MAX_HEADER:
            raise UserError(
                f"{name} is a WAV file with a header of more than {_MAX_HEADER:,} bytes: it is damaged"
            )
    return None


def _check_format(header: bytes, rate: int, name: str) -> None:
    kind, channels, found, _, _, bits = np.frombuffer(header, "<u2,<u2,<u4,<u4,<u2,<u2")[0].tolist()
    if kind not in _WAVE_FORMATS or (channels, found, bits) != (1, rate, 16):
        raise UserError(
            f"{name} is WAV of {bits} bits, {channels} channels and {found:,} Hz, and the model hears 16 bits, 1 "
            f"channel and {rate:,} Hz: arecord -f S16_LE -c 1 -r {rate}"
        )


def _until_interrupted(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks up to Ctrl-C, by which recording ends."""
    try:
        yield from blocks
    except KeyboardInterrupt:
        return
