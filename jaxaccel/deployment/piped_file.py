"""A picture, a sound or an array that is piped into a command as it is: ``predict RUN - < cat.png``."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxaccel.errors import UserError

HEAD_BYTES = 512
"""Within so many bytes every format of pictures, sounds and arrays has a byte that no list of paths has."""
MAX_BYTES = 2**31
"""Of a file that is piped; larger ones are named by their path."""
_ENDINGS = {b"\x93NUMPY": ".npy"}
"""Endings of files that are told apart by their names."""


def is_file(head: bytes) -> bool:
    """Tells whether these first bytes are those of a file and not of paths, one a line."""
    return b"\0" in head[:HEAD_BYTES]


@contextlib.contextmanager
def save_file(file: BinaryIO, head: bytes, name: str) -> Iterator[Path]:
    """Saves what is left to read as a file that is there until the context ends.

    Args:
      file: to read.
      head: its first bytes, which are read again.
      name: what messages call it.

    Raises:
      UserError: it has more than `MAX_BYTES`.
    """
    with tempfile.TemporaryDirectory() as folder:
        ending = next((e for start, e in _ENDINGS.items() if head.startswith(start)), "")
        path = Path(folder) / f"{name}{ending}"
        with path.open("wb") as out:
            shutil.copyfileobj(_Bounded(file, name), out)
        yield path


class _Bounded:
    """What is read of `file`, as long as it is not too much."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self._left = file, name, MAX_BYTES

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise UserError(f"{self._name} has more than {MAX_BYTES:,} bytes: name a file instead")
        return found
