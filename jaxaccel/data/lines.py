"""Lines of files and pipes, as they arrive."""

from collections.abc import Iterator
from typing import Protocol

from jaxaccel.errors import UserError

MAX_LINE_BYTES = 1 << 26
_CHUNK_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Readable(Protocol):
    """A file of bytes that gives what is there: ``open(path, "rb")``, ``gzip.open(path)``, ``sys.stdin.buffer``."""

    def read1(self, size: int, /) -> bytes:
        """Up to `size` bytes as soon as there are some, none at the end."""
        ...


def read_lines(file: Readable, name: str) -> Iterator[list[bytes]]:
    """The lines that have arrived, again and again, without their ends; a byte-order mark of UTF-8 is taken off.

    Args:
      file: to read.
      name: what messages call it.

    Raises:
      UserError: the file is UTF-16, or has a line of more than `MAX_LINE_BYTES`.
    """
    parts: list[bytes] = []
    held, begun = 0, False
    while chunk := file.read1(_CHUNK_BYTES):
        first, *others = (chunk if begun else _without_mark(chunk, name)).split(b"\n")
        begun = True
        parts.append(first)
        held += len(first)
        if held > MAX_LINE_BYTES:
            raise UserError(f"{name} has a line of more than {MAX_LINE_BYTES:,} bytes: divide it")
        if others:
            yield [line.removesuffix(b"\r") for line in (b"".join(parts), *others[:-1])]
            parts, held = [others[-1]], len(others[-1])
    if last := b"".join(parts):
        yield [last.removesuffix(b"\r")]


def _without_mark(start: bytes, name: str) -> bytes:
    if start.startswith(_UTF16):
        raise UserError(f"{name} is UTF-16: save it as UTF-8, with iconv -f utf-16 -t utf-8, for instance")
    return start.removeprefix(_BOM)
