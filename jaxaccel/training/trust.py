"""Whether this user's own training wrote a run: a digest of its files, keyed with a secret of the user's.

The secret lies in the user's configuration directory (``$XDG_CONFIG_HOME/jaxaccel/secret``, by default below
``~/.config``), readable by nobody else, and is made when it is first needed. The digest is HMAC-SHA256 (RFC 2104).
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaxaccel.core.files import write_text

SIGNATURE = "signature"
"""File of a run that holds the digest of its recipe.json and of the code beside it."""
_SECRET_BYTES = 32
"""Bytes of the secret."""


def sign(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Writes down that this user's own training wrote these files of `directory`.

    Without a secret nothing is written: `explain_no_secret` says why there is none.
    """
    with contextlib.suppress(OSError):
        write_text(directory / SIGNATURE, _digest(_secret(), contents) + "\n")


def is_own(directory: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether this user's own training wrote these files of `directory`, as they are."""
    try:
        said = (directory / SIGNATURE).read_bytes()[:100].strip()
        return hmac.compare_digest(said, _digest(_secret(), contents).encode())
    except OSError:
        return False


def explain_no_secret() -> str:
    """Why there is no secret, so that no run is known as one's own; empty where there is one."""
    try:
        _secret()
    except OSError as error:
        return f"{_place()}: {error.strerror or error}"
    return ""


def _digest(secret: bytes, contents: Mapping[str, bytes]) -> str:
    total = hmac.new(secret, b"jaxaccel run 1\0", hashlib.sha256)
    for name, content in sorted(contents.items()):
        for part in (name.encode(), content):
            total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def _place() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # A relative one is to be ignored, says the XDG Base Directory Specification.
    root = base if Path(base).is_absolute() else os.path.expanduser("~/.config")  # noqa: PTH111
    return Path(root) / "jaxaccel" / "secret"


def _secret() -> bytes:
    """The secret, which is made where there is none.

    Raises:
      OSError: it cannot be made or read, or somebody else could have read it.
    """
    place = _place()
    if not place.is_absolute():
        raise OSError("there is no home directory")
    if not place.exists():
        _make(place)
    # The file that is checked is the one that is read.
    with open(os.open(place, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:  # noqa: PTH123
        known, secret = os.fstat(file.fileno()), file.read(_SECRET_BYTES + 1)
    if not stat.S_ISREG(known.st_mode) or len(secret) != _SECRET_BYTES:
        raise OSError("it is no secret that jaxaccel made: delete it, and another one is made")
    if os.name == "posix" and (known.st_uid != os.geteuid() or known.st_mode & 0o077):
        raise OSError("other users may read or own it: delete it, and another one is made")
    return secret


def _make(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, draft = tempfile.mkstemp(dir=place.parent)  # mode 0600
    try:
        with open(handle, "wb") as file:  # noqa: PTH123
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, place)
    except FileExistsError:  # another process made one just now
        pass
    finally:
        Path(draft).unlink()
