"""Files written whole or not at all, read with one line where they are damaged, and what a disk may answer."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

from jaxaccel.errors import UserError

DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip
"""What is nobody's mistake in the program."""


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` by way of a draft beside it: a killed process leaves the old file or the new one."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` likewise."""
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(content)
    draft.replace(path)


def is_left_over(path: Path) -> bool:
    """Whether that is what a process leaves that was killed while it wrote: nobody's loss."""
    hidden = path.name.startswith(".") and path.name.endswith((".lock", ".replaced"))
    return hidden or path.name.endswith(".draft")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: it is damaged, or something else.
      OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} was not written by jaxaccel, or is damaged")
    return found


def disk_error(error: BaseException | None, path: Path) -> OSError | None:
    """The answer of a disk that `error` comes from, which libraries may hand on as text; None where it is another one.

    Args:
      error: what was raised, with its causes.
      path: where that was, for an error that does not say so.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in DISK:
            return OSError(error.errno, os.strerror(error.errno), str(error.filename or path))
        numbers = {int(number) for number in re.findall(r"OS error (\d+)", str(error))}
        for code in DISK:
            if code in numbers or os.strerror(code).lower() in str(error).lower():
                return OSError(code, os.strerror(code), str(path))
        error = error.__cause__ or error.__context__
    return None
