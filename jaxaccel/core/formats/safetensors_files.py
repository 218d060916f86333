"""Safetensors files, of every dtype that NumPy and ml_dtypes have: a JSON header, and numbers one behind the other.

The format is that of https://github.com/huggingface/safetensors; what its own parser refuses is refused here too.
"""

import io
import json
import math
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxaccel.core.formats.bounds import Refused, check, explain_errors, open_file, shorten, size_of

_MAX_HEADER_BYTES = 100_000_000  # bytes, as in the format's own parser
_DTYPES: dict[str, Any] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
    "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


class Entry(NamedTuple):
    """Where the numbers of one array lie in a file, in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file says of itself."""

    entries: dict[str, Entry]
    """By name, sorted by it."""
    metadata: dict[str, str]


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name, sorted by it; bfloat16 and float8 are those of ``ml_dtypes``.

    Raises:
      UserError: the file is missing, damaged or of another kind, or has a dtype that is not read (float4, float6).
    """
    path = Path(path)
    with explain_errors(path, "is no whole safetensors file"), open_file(path) as file:
        return {name: read_array(file, entry) for name, entry in read_header(file).entries.items()}


def read_content(content: bytes, path: str | Path) -> dict[str, np.ndarray]:
    """As `read`, of what a file at `path` holds.

    Raises:
      UserError: as of `read`.
    """
    with explain_errors(Path(path), "is no whole safetensors file"), io.BytesIO(content) as file:
        return {name: read_array(file, entry) for name, entry in read_header(file).entries.items()}


def read_header(file: IO[bytes]) -> Header:
    """The header of an open file, every number in it checked; for within `explain_errors`.

    Raises:
      Refused: it has a dtype that is not read.
      ValueError, KeyError, TypeError, AttributeError, RecursionError: it is no header, or does not fit the file.
    """
    size = size_of(file)
    length = int.from_bytes(file.read(8), "little")
    check(2 <= length <= min(size - 8, _MAX_HEADER_BYTES), "a header longer than the file")
    header = json.loads(file.read(length), object_pairs_hook=_without_twins)
    check(isinstance(header, dict), "a header of something else than names")
    metadata = header.pop("__metadata__", None) or {}
    check(isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()), "wrong metadata")
    entries = {name: _entry(name, fact, 8 + length) for name, fact in header.items()}
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        check(entry.start == end, "arrays that overlap or leave gaps")
        end = entry.stop
    check(end == size, "a file longer or shorter than its header says")
    return Header(dict(sorted(entries.items())), metadata)


def read_array(file: IO[bytes], entry: Entry) -> np.ndarray:
    """The array that `entry` says lies in an open file."""
    file.seek(entry.start)
    raw = bytearray(entry.stop - entry.start)
    check(file.readinto(raw) == len(raw), "a file that became shorter")  # pyright: ignore[reportAttributeAccessIssue]
    if entry.dtype == np.bool_:  # a byte other than 0 and 1 would be an undefined bool
        return (np.frombuffer(raw, np.uint8) != 0).reshape(entry.shape)
    return np.frombuffer(raw, entry.dtype).reshape(entry.shape)


def _entry(name: str, fact: Any, start: int) -> Entry:
    kind, shape, offsets = fact["dtype"], fact["shape"], fact["data_offsets"]
    check(isinstance(kind, str) and isinstance(shape, list) and isinstance(offsets, list), "a wrong entry")
    check(all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, *offsets)), "a wrong size")
    if kind not in _DTYPES:
        raise Refused(
            f"holds {shorten(name, 50)} as {shorten(kind, 20)}, which is not read: save it as F32 or BF16"
        )
    dtype = np.dtype(_DTYPES[kind])
    first, last = offsets
    check(len(shape) <= 32, "an array of more than 32 axes")
    check(math.prod(shape) * dtype.itemsize == last - first, "an array of another size than its shape says")
    return Entry(dtype, tuple(shape), start + first, start + last)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    check(len(found) == len(pairs), "two entries of one name")
    return found
