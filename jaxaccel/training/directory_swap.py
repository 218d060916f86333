"""A new directory in the place of an old one, which stands there again unless the new one comes to something."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True)
class Swap:
    """Replaces what is in `directory`, so that a process that is killed at any time loses nothing.

    Whoever uses it holds the lock on the directory (`lock.hold_lock`).
    """

    directory: Path
    mark: str
    """Name of the file by which a directory of this kind is known. Others are never deleted."""
    worth: Callable[[Path], bool]
    """Whether a directory has come to something, so that what it replaced may go."""

    def begin(self, write: Callable[[Path], None]) -> None:
        """Puts a directory that `write` fills in the place of what is there, which is set aside.

        Raises:
          UserError: something is set aside already that is not ours to delete.
          OSError: it cannot be written.
        """
        if self._aside.exists():
            raise UserError(f"{self._aside} holds what an earlier run replaced: move it away first")
        self._draft.mkdir(parents=True)
        write(self._draft)
        self._place.rename(self._aside)
        self._draft.rename(self._place)

    def settle(self) -> None:
        """Deletes what was replaced, as soon as the new directory has come to something."""
        if self._aside.exists() and self.worth(self._place):
            shutil.rmtree(self._aside)

    def end(self) -> None:
        """Settles it: deletes what was replaced, or puts it back. What a process left that was killed, too."""
        shutil.rmtree(self._draft, ignore_errors=True)
        self.settle()
        if not self._aside.exists():
            return
        if (self._place / self.mark).is_file():
            self._place.rename(self._draft)
        if not self._place.exists():
            self._aside.rename(self._place)
            shutil.rmtree(self._draft, ignore_errors=True)

    @property
    def _place(self) -> Path:
        return self.directory.resolve()

    @property
    def _aside(self) -> Path:
        return self._place.with_name(f".{self._place.name}.replaced")

    @property
    def _draft(self) -> Path:
        return self._place.with_name(f".{self._place.name}.draft")
