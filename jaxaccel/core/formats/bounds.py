"""Bounds of what a stranger's file may cost: regular files alone, memory by the size of the file, one line of error."""

import contextlib
import json
import lzma
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxaccel.errors import UserError

FLOOR = 1 << 26
"""Bytes that even the smallest file may fill: zeros of a small network, packed, are next to nothing."""
MAX_PIXELS = 178_956_970
"""Of a picture: what Pillow too refuses by itself, where it looks; half a gigabyte in RGB."""
_MAX_JSON_BYTES = 1 << 26  # bytes of a JSON file
_MALFORMED = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, EOFError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    *(SyntaxError, tokenize.TokenError),  # NumPy's headers are literals of Python
)
"""What parsers raise for content that makes no sense (RecursionError is a RuntimeError)."""


class Refused(Exception):
    """The file asks for what is not done here; the message goes on after the file's name."""


class Budget:
    """An amount of bytes or steps that a file may use up, and what is said when it asks for more."""

    def __init__(self, amount: int, otherwise: str) -> None:
        self._left, self._otherwise = amount, otherwise

    def spend(self, amount: int) -> None:
        """Takes `amount` off.

        Raises:
          Refused: there is less left.
        """
        self._left -= amount
        if self._left < 0:
            raise Refused(self._otherwise)


def check(holds: bool, otherwise: str) -> None:
    """Raises a ValueError that says `otherwise` unless it `holds`: the file makes no sense."""
    if not holds:
        raise ValueError(otherwise)


@contextlib.contextmanager
def explain_errors(path: Path, what: str) -> Iterator[None]:
    """Turns all that reading `path` can raise into one line.

    Args:
      path: of the file.
      what: what a damaged file may be besides: ``was not written by torch.save``.

    Raises:
      UserError: for an OSError, for what was `Refused`, and for content that makes no sense.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Refused as error:
        raise UserError(f"{path} {error}") from None
    except _MALFORMED as error:
        detail = shorten(str(error) or type(error).__name__)
        raise UserError(f"{path} is damaged or {what} ({detail}): get or save it again") from error


def shorten(text: str, most: int = 100) -> str:
    """At most `most` characters of a stranger's `text`, on one line and printable."""
    line = " ".join(text[: 4 * most].split())
    return (line if line.isprintable() else ascii(line)[1:-1])[:most]


def open_file(path: Path) -> IO[bytes]:
    """Opens a regular file; a pipe or a device, which may have no end, is not touched.

    Raises:
      OSError: it cannot be opened or is something else.
    """
    _check_regular(path.stat().st_mode)  # before it is opened: some devices act on that
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def size_of(file: IO[bytes]) -> int:
    """How many bytes an open file has, on a disk or in memory."""
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
      OSError: it cannot be opened or is no regular file.
      Refused: it is larger.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Refused(f"has more than {most:,} bytes, the most that is read of such a file")
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file of at most 64 MiB; for within `explain_errors`."""
    return json.loads(read_bytes(path, _MAX_JSON_BYTES))


def check_pixels(size: tuple[int, int]) -> None:
    """Checks (width, height) in pixels, as the header of a picture says, before it is decoded.

    Raises:
      ValueError: that is more than `MAX_PIXELS`.
    """
    width, height = size
    check(
        width * height <= MAX_PIXELS,
        f"{width} x {height} pixels are more than {MAX_PIXELS:,}: make it smaller",
    )


def zip_members(archive: zipfile.ZipFile, budget: Budget) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name, all of whose bytes are spent from `budget` before one is read.

    Raises:
      Refused: they are too large together, or one is encrypted.
      ValueError: two have one name, or one is compressed otherwise than by deflate.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        check(member.filename not in members, f"two members called {member.filename[:50]}")
        if member.flag_bits & 0x1:
            raise Refused("is encrypted: unpack it with its password and save its arrays without one")
        check(
            member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), "a rare kind of compression"
        )
        budget.spend(member.file_size)
        members[member.filename] = member
    return members


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, however much its compressed data would give."""
    with archive.open(member) as stream:
        # Without a number, zipfile would inflate the whole member before it looks at its size.
        content = stream.read(member.file_size + 1)
    check(len(content) == member.file_size, "a member of another size than the archive says")
    return content


def _check_regular(mode: int) -> None:
    kinds = {
        stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    if kind := kinds.get(stat.S_IFMT(mode)):
        raise OSError(f"it is {kind} and no file")
