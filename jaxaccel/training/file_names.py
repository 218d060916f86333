"""What the names in the file of a run stand for, and which of them mean that code is executed.

Names of jaxaccel, Flax and Optax are looked up among what is imported already, and have to be something that makes a
model, an augmentation, or options such as a task. Every other one is code of somebody's own, in a file beside the run
or in a module that Python finds. It is executed only where the user said so, or where this user's own training wrote
the run.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import linen, nnx

from jaxaccel import tasks
from jaxaccel.core.call_text import import_path, parse, suggest_nearest
from jaxaccel.core.user_code import list_definitions, load_kept, walk
from jaxaccel.errors import UserError, option
from jaxaccel.training import trust
from jaxaccel.training.function_names import NAMES

MODULES = (nnx.Module, linen.Module)
"""What makes a model, besides the functions in `NAMES`."""
PACKAGES = ("jaxaccel", "flax", "optax")
"""Whose models, augmentations and options anybody's file may name."""
TASKS: Mapping[str, type] = {name: getattr(tasks, name) for name in dir(tasks)}


@dataclasses.dataclass(frozen=True)
class FileNames:
    """The names in one file."""

    file: Path
    """The recipe.json of a run."""
    content: bytes
    """What it holds."""
    modules: tuple[str, ...] = ()
    """The modules that are kept beside it, each in a file of its name."""
    trust: bool = False
    """The user said that code beside it, or named in it, is to be executed."""

    def function(self, text: str) -> Callable[..., Any]:
        """What a call in the file stands for, with its options bound.

        Raises:
          UserError: it names nothing, or nothing that may be executed.
        """
        if "<" in text.partition("(")[0]:
            raise self._gone(text)
        try:
            found = parse(text, NAMES, lambda path: self._find(path, MODULES))
        except UserError as error:
            raise self._at(error) from error
        if not callable(found):
            raise UserError(f"{self.file} names {text}, which makes nothing")
        return found

    def kind(self, name: str, bases: tuple[type, ...]) -> type:
        """The class of options that a name in the file stands for, derived from one of `bases`.

        Raises:
          UserError: it names none, or none that may be executed.
        """
        if "<" in name:
            raise self._gone(name)
        if len(name) > 500 or not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"{self.file} names the class {name!r:.80}, which cannot be one")
        if "." not in name and name not in TASKS:
            raise UserError(
                f"{self.file} names the class {name}, which is none of jaxaccel's{suggest_nearest(name, TASKS)}: "
                "code of one's own is named with its module, MODULE.CLASS"
            )
        found = TASKS.get(name) or self._find(name, bases)
        options = isinstance(found, type) and (
            dataclasses.is_dataclass(found) or issubclass(found, tasks.Task)
        )
        if not options or not issubclass(found, bases):
            wanted = " or ".join("class of options" if x is object else x.__name__ for x in bases)
            raise UserError(f"{self.file} names {name}, which is no {wanted}")
        return found

    @functools.cached_property
    def kept(self) -> dict[str, bytes]:
        """The content of each file of code beside this one, by the name of its module.

        Raises:
          UserError: one is missing, or does not lie there.
        """
        found = {}
        for name in self.modules:
            path = self.file.parent / f"{name}.py"
            if not path.is_file() or path.resolve().parent != self.file.parent.resolve():
                raise UserError(f"{self.file} needs {path.name}, which is not beside it")
            found[name] = path.read_bytes()
        return found

    @functools.cached_property
    def trusted(self) -> bool:
        """Whether code that the file names may be executed."""
        return self.trust or trust.is_own(
            self.file.parent, {self.file.name: self.content, **{f"{n}.py": x for n, x in self.kept.items()}}
        )

    def definitions(self) -> dict[str, Any]:
        """The functions and classes that the files beside this one define; none where they are not trusted.

        Raises:
          UserError: a file is missing or cannot be executed.
        """
        return list_definitions(self._load(name) for name in self.modules) if self.trusted else {}

    def _load(self, module: str) -> ModuleType:
        return load_kept(module, self.kept[module], self.file.parent / f"{module}.py")

    def _find(self, path: str, bases: tuple[type, ...]) -> Any:
        module, _, rest = path.partition(".")
        if module == "__main__":
            found = walk(sys.modules[module], rest) if self.trusted else None
            if found is None:
                raise self._gone(path)
            return found
        if module in PACKAGES and (found := _shipped(path, bases)) is not None:
            return found
        if not self.trusted:
            raise self._refused(path)
        if module not in self.modules:
            return import_path(path)
        found = walk(self._load(module), rest)
        if found is None:
            raise UserError(f"{self.file} names {path}, and {module}.py beside it has none")
        return found

    def _refused(self, path: str) -> UserError:
        why = trust.explain_no_secret()
        known = f" (no run is known as your own: {why})" if why else ""
        return UserError(
            f"{self.file} names {path}, which is no model, augmentation or task of jaxaccel, Flax or Optax; other "
            f"code is executed unasked only in runs that your own training signed{known}: if you trust this one, say "
            f"{option('trust', True)}"
        )

    def _gone(self, text: str) -> UserError:
        return UserError(
            f"{self.file} names {text!r:.200}, of the notebook or script that trained it, which is not kept: put it "
            "into a module or a recipe file, and train again"
        )

    def _at(self, error: UserError) -> UserError:
        return error if str(self.file) in error.message else UserError(f"{self.file}: {error.message}")


def check_modules(file: Path, modules: Sequence[Any]) -> None:
    """Checks that no module of a file lies elsewhere than beside it.

    Raises:
      UserError: one does.
    """
    for name in modules:
        if not isinstance(name, str) or not name.isidentifier() or name in (*PACKAGES, "__main__"):
            raise UserError(f"{file} names a module {name!r:.80}, which cannot be a file beside it")


def _shipped(path: str, bases: tuple[type, ...]) -> Any:
    """A function in `NAMES`, or a class of `PACKAGES` derived from one of `bases`, which anybody's file may name.

    None where it is neither. Nothing is imported.
    """
    parts = path.split(".")
    modules = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    module = next((name for name in modules if name in sys.modules), None)
    found = walk(sys.modules[module], path.removeprefix(f"{module}.")) if module else None
    home = getattr(found, "__module__", None)
    # Where it is defined counts, not where it can be reached: modules hold others that they import.
    if not isinstance(home, str) or home.partition(".")[0] not in PACKAGES or home not in sys.modules:
        return None
    if walk(sys.modules[home], getattr(found, "__qualname__", "")) is not found:
        return None
    may = issubclass(found, bases) if isinstance(found, type) else any(found is x for x in NAMES.values())
    return found if may else None
