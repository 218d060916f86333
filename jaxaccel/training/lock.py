"""One writer at a time in a directory; readers never notice."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxaccel.errors import UserError, option

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems answer that know none."""
NOT_BESIDE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def hold_lock(directory: Path) -> Iterator[None]:
    """Holds the lock on `directory`, which need not exist, until the block ends or this process dies.

    The lock is on a file beside the directory, ``.NAME.lock``, so that it stays where it is when the directory is
    replaced; where nothing can be written beside it, the file is inside. Where there are no locks, that is said.

    Raises:
      UserError: another process, or another part of this one, holds it.
      OSError: the file cannot be made.
    """
    path, file = _locked(directory)
    with file:
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # while it is still locked: nobody loses the file to us
                path.unlink()


def _locked(directory: Path) -> tuple[Path, IO[str]]:
    """The file that the lock is on, and where it is."""
    while True:
        path, file = _opened(directory)
        try:
            _lock(directory, file)
        except BaseException:
            file.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return path, file
        file.close()  # whoever held it removed it in the meantime


def _opened(directory: Path) -> tuple[Path, IO[str]]:
    place = directory.resolve()
    path = place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, path.open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno not in NOT_BESIDE or not place.is_dir():
            raise
    return place / ".lock", (place / ".lock").open("a+", encoding="utf-8")


def _lock(directory: Path, file: IO[str]) -> None:
    if fcntl is None:
        log.warning("this system has no locks: take care that nothing else writes to %s", directory)
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        number, _, host = file.read().partition(" ")
        who = f"process {number} on {host}" if host else "another process"
        raise UserError(
            f"{directory} is in use, {who} writes to it: wait for it or end it, or choose another "
            f"{option('run', 'DIR')}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("its file system has no locks: take care that nothing else writes to %s", directory)
