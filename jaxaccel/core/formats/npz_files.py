"""NumPy's npz archives, read without unpickling, in memory that their size bounds."""

import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from jaxaccel.core.formats.bounds import (
    FLOOR,
    Budget,
    Refused,
    check,
    explain_errors,
    open_file,
    read_member,
    shorten,
    size_of,
    zip_members,
)

MAX_EXPANSION = 64
"""How many times as large as the file its arrays may be, beyond `bounds.FLOOR`. Weights of which nine in ten are zero
reach 10, zeros alone 1,032."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in an npz file by name, in its order; arrays of text are left out.

    Raises:
      UserError: the file is missing, damaged, encrypted or of another kind, holds objects or structures, or claims to
        hold more than `MAX_EXPANSION` its size.
    """
    path = Path(path)
    with (
        explain_errors(path, "is no whole npz file of numbers"),
        open_file(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        limit = MAX_EXPANSION * size_of(file) + FLOOR
        claimed = sum(member.file_size for member in archive.infolist())
        members = zip_members(
            archive,
            Budget(
                limit,
                f"claims to hold {claimed:,} bytes, out of proportion to its size: save it with numpy.savez",
            ),
        )
        arrays: dict[str, np.ndarray] = {}
        for name, member in members.items():
            array = _array(read_member(archive, member), name)
            if array is not None:
                arrays[name.removesuffix(".npy")] = array
        return arrays


def is_npz(path: Path) -> bool:
    """Whether it is a zip archive of nothing but ``.npy`` files."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, RuntimeError, LookupError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _array(content: bytes, name: str) -> np.ndarray | None:
    """The array in a ``.npy`` file; None of text."""
    stream = io.BytesIO(content)
    shape, in_fortran, dtype = _header(stream)
    if dtype.kind in "US":
        return None
    if dtype.kind not in "biufc":
        raise Refused(
            f"holds {shorten(name, 50)} of type {shorten(str(dtype), 50)}, which are no numbers; refused"
        )
    check(all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 32, "an array of a wrong size")
    start, count = stream.tell(), math.prod(shape)
    check(count * dtype.itemsize == len(content) - start, "an array of another size than its bytes")
    kind = (
        np.dtype(np.uint8) if dtype == np.bool_ else dtype
    )  # a byte other than 0 and 1 would be an undefined bool
    flat = np.frombuffer(content, kind, count, start) if count else np.empty(0, kind)
    flat = flat != 0 if dtype == np.bool_ else flat.astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if in_fortran else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    check(version in ((1, 0), (2, 0)), "an array of another version")
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
