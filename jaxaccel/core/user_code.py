"""Python files of the user's own, such as recipe files, as modules whose exact content is known.

A file is compiled from the bytes that were read, never from ``__pycache__``: what is checked, executed and kept beside
a run are the same bytes. Code that was kept beside a run is executed from a private copy, so that nothing else in the
run's directory can be imported.
"""

import atexit
import hashlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxaccel.errors import UserError

_loaded: list[tuple[ModuleType, bytes]] = []
"""Modules of such files, the newest first, and the content that was executed."""


def load_file(path: Path) -> ModuleType:
    """The module in a file that the user named; files beside it can be imported by it.

    Raises:
      UserError: there is no such file, it cannot be executed, or another module has its name.
    """
    if not path.is_file():
        raise UserError(f"no recipe file {path}: write one, or name one of --list")
    folder = str(path.parent.absolute())
    known = folder in sys.path
    if not known:
        sys.path.insert(0, folder)
    try:
        return _execute(path.stem, path.read_bytes(), path.absolute(), path)
    except BaseException:
        if not known and folder in sys.path:
            sys.path.remove(folder)
        raise


def call(module: ModuleType, name: str, shown: Path | str) -> Any:
    """What the function `name` of a module returns; None where the module has no such function.

    Raises:
      UserError: the function fails.
    """
    function = getattr(module, name, None)
    try:
        return function() if callable(function) else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(_told(Path(shown), error)) from error


def load_kept(name: str, content: bytes, shown: Path) -> ModuleType:
    """The module `name` of a file that was kept beside a run and whose content may be executed.

    Where the same content was loaded under that name already, it is that module.

    Raises:
      UserError: it cannot be executed, or another module has its name.
    """
    for module, known in _loaded:
        if module.__name__ == name and known == content:
            return module
    copy = _private_folder() / hashlib.sha256(content).hexdigest()[:16] / f"{name}.py"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(content)
    sys.path.append(str(copy.parent))  # for processes that read data, which import it by its name
    return _execute(name, content, copy, shown)


def find_modules(name: str) -> list[ModuleType]:
    """The modules of that name: the one that Python knows, and those of files of the user's own."""
    known = [sys.modules[name]] if name in sys.modules else []
    return known + [module for module, _ in _loaded if module.__name__ == name and module not in known]


def list_definitions(modules: Iterable[ModuleType]) -> dict[str, Any]:
    """The public functions and classes that modules of user files define, by name, but for `recipe` itself.

    What a module only imports is not its own. Of two with one name, that of the first module is taken.
    """
    found: dict[str, Any] = {}
    for module in modules:
        for name, thing in vars(module).items():
            own = callable(thing) and getattr(thing, "__module__", None) == module.__name__
            if own and hasattr(thing, "__qualname__") and not name.startswith("_") and name != "recipe":
                found.setdefault(name, thing)
    return found


def read_content_of(thing: Any) -> bytes | None:
    """The content of the user's file that defines a function or class; None where it is of no such file."""
    for module, content in _loaded:
        if module.__name__ == thing.__module__ and walk(module, thing.__qualname__) is thing:
            return content
    return None


def read_content_at(path: Path) -> bytes:
    """The content of a file as it was when it was loaded last, or as it is where it was not."""
    for module, content in _loaded:
        if module.__file__ == str(path.absolute()):
            return content
    return path.read_bytes()


def walk(module: ModuleType, name: str) -> Any:
    """What ``Outer.Inner`` stands for in a module, by way of classes alone; None where there is nothing."""
    found: Any = module
    for i, part in enumerate(name.split(".")):
        if i and not isinstance(found, type):
            return None
        found = getattr(found, part, None)
    return found


def _execute(name: str, content: bytes, path: Path, shown: Path) -> ModuleType:
    if not name.isidentifier():
        raise UserError(
            f"{shown}: rename it to letters, digits and underscores, so that Python can import it"
        )
    taken = sys.modules.get(name)
    if taken is not None and all(taken is not module for module, _ in _loaded):
        raise UserError(f"{shown}: another module is called {name} already: rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    module = importlib.util.module_from_spec(spec)
    # Under its own name, so that its functions can be named in recipe.json and pickled for workers.
    sys.modules[name] = module
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except BaseException as error:
        if taken is None:
            del sys.modules[name]
        else:
            sys.modules[name] = taken
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(_told(shown, error)) from error
    _loaded.insert(0, (module, content))
    return module


def _told(shown: Path, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{shown} cannot be imported: {error}; put what it needs on PYTHONPATH"
    where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{shown}{where}: {type(error).__name__}: {error} (--traceback shows where)"


def _private_folder() -> Path:
    if not _folders:
        _folders.append(Path(tempfile.mkdtemp(prefix="jaxaccel-")))
        atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
    return _folders[0]


_folders: list[Path] = []
