"""Where models come from: words of a command line, and the folders of a repository."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.serving.faults import FORBIDDEN, NOT_FOUND, Refusal
from jaxaccel.deployment.serving.limits import is_name, is_version
from jaxaccel.deployment.signature import Engine, Shapes
from jaxaccel.errors import UserError


class Predictor(Protocol):
    """A model with the preprocessing of its task, for people: the page of ``--ui`` calls it."""

    def describe(self, content: bytes | str, file_name: str) -> dict[str, Any]:
        """Says what the model makes of a picture, a sound or a text.

        Args:
          content: the bytes of a file, or a text.
          file_name: of the file, which tells its kind; empty for a text.

        Returns:
          What can be written as JSON. ``label`` and ``scores`` (a probability by class) are shown as bars.

        Raises:
          UserError: it cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that was opened."""

    name: str
    """What it calls itself."""
    engine: Engine
    predictor: Predictor | None = None
    shapes: Sequence[Shapes] = ()
    """Of the inputs of one example, all that were exported; none where that is not known."""


Load = Callable[[Path, EngineName], Opened]
"""(path, name of the engine) -> the model; raises a UserError where there is none."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one version of a model is."""

    path: Path
    name: str = ""
    """What it is served as; empty for what it calls itself."""
    version: str = ""
    """Empty for the first that is free."""


def read_source(word: str) -> Source:
    """The source that a word of a command line names: ``PATH``, ``NAME=PATH`` or ``NAME:VERSION=PATH``.

    Raises:
      UserError: the name or the version is none.
    """
    named, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return Source(Path(word))
    name, colon, version = named.partition(":")
    if not is_name(name):
        raise UserError(f"{name!r} cannot name a model: use letters, digits, dots, dashes and underscores")
    if colon and not is_version(version):
        raise UserError(f"{version!r} cannot name a version: use a whole number of at least 1")
    return Source(Path(path), name, version)


class Repository:
    """The folders that clients may load by name, and nothing outside them.

    A model is ``ROOT/NAME``, or has its versions in ``ROOT/NAME/1``, ``ROOT/NAME/2``.

    Args:
      root: the directory; None where clients load nothing.
    """

    def __init__(self, root: Path | None) -> None:
        if root is not None and not root.is_dir():
            raise UserError(f"there is no directory {root} to load models from")
        self.root = root

    def check_open(self) -> None:
        """Checks that clients may load and unload.

        Raises:
          Refusal: they may not.
        """
        if self.root is None:
            raise Refusal("models are not loaded by clients here: start with --repository DIR", FORBIDDEN)

    def names(self) -> Sequence[str]:
        """Names of all models in it."""
        if self.root is None:
            return ()
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and is_name(path.name))

    def find(self, name: str) -> list[Source]:
        """The versions of a model, ascending.

        Raises:
          Refusal: there is no such model.
        """
        # Names are compared with those of the folders, so no name of a client ever becomes a path.
        if self.root is None or name not in self.names():
            raise Refusal(
                f"the repository has no model {name}" if is_name(name) else "no such model", NOT_FOUND
            )
        folder = self.root / name
        versions = sorted((p.name for p in folder.iterdir() if p.is_dir() and is_version(p.name)), key=int)
        if not versions:
            return [Source(folder, name, "1")]
        return [Source(folder / version, name, version) for version in versions]
