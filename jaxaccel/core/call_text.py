"""Functions with keyword arguments, written as Python writes calls: ``pad_and_crop(padding=4)``.

A recipe holds real functions (`functools.partial` binds their options). The command line and
``recipe.json`` need them as text: `render` writes one, `parse` reads it back. Nothing is evaluated:
arguments must be literals or such functions, and a name is one of a given namespace or a dotted path, which the caller
of `parse` looks up. `import_path` does so for names that a person typed; those in files are looked up by `file_names`.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.core.user_code import find_modules, walk
from jaxaccel.errors import UserError

MAX_CHARACTERS = 20_000
"""Of a call: Python's parser takes long ones to great depths."""


def import_path(path: str) -> Any:
    """What a dotted path stands for, ``package.module.Class``: its module is imported, and thereby executed.

    Raises:
      UserError: there is no such module, or no function or class of that name in it.
    """
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A shorter path is tried where this one is missing, and not what it imports.
            if count > 1 and f"{name}.".startswith(f"{error.name}."):
                continue
            raise UserError(
                f"cannot import {path!r}: {error}; put the folder that has it on PYTHONPATH"
            ) from error
        except ImportError as error:
            raise UserError(f"cannot import {path!r}: {error}") from error
        found = walk(module, ".".join(parts[count:]))
        if found is None:
            raise UserError(
                f"cannot import {path!r}: there is none in {name}{suggest_nearest(parts[count], dir(module))}"
            )
        return found
    raise UserError(f"cannot import {path!r}: write it as MODULE.NAME")


def parse(
    text: str, names: Mapping[str, Callable[..., Any]], find: Callable[[str], Any] = import_path
) -> Callable[..., Any]:
    """The function that `text` names, with its keyword arguments bound.

    Args:
      text: ``name``, ``name(option=literal, other=function(...))`` or ``package.module.name(...)``.
      names: what bare names stand for.
      find: what a dotted path stands for.

    Raises:
      UserError: `text` is no such call, or nothing has that name (the nearest one is suggested).
    """
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError("too long")
        return _function(ast.parse(text.strip(), mode="eval").body, names, find)
    except UserError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UserError(f"cannot read {shown!r}: write it as NAME or NAME(option=value, ...)") from error


def _function(node: ast.expr, names: Mapping[str, Any], find: Callable[[str], Any]) -> Callable[..., Any]:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("positional arguments")
    path = ast.unparse(call.func)
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError("no name")
    options = {str(k.arg): _value(k.value, names, find) for k in call.keywords}
    if path in names:
        function = names[path]
    elif "." in path:
        function = find(path)
    else:
        raise UserError(
            f"unknown name {path!r}{suggest_nearest(path, names)} (known: {', '.join(sorted(names))})"
        )
    return functools.partial(function, **options) if options else function


def _value(node: ast.expr, names: Mapping[str, Any], find: Callable[[str], Any]) -> Any:
    """A literal, a function that is written as any other, or a tuple, list or dict of them."""
    named = node.func if isinstance(node, ast.Call) else node
    if isinstance(named, (ast.Name, ast.Attribute)):
        return _function(node, names, find)
    if isinstance(node, (ast.Tuple, ast.List)):
        values = [_value(inner, names, find) for inner in node.elts]
        return tuple(values) if isinstance(node, ast.Tuple) else values
    if isinstance(node, ast.Dict) and all(node.keys):
        keys = [ast.literal_eval(key) for key in node.keys if key]
        return dict(zip(keys, (_value(inner, names, find) for inner in node.values), strict=True))
    return ast.literal_eval(node)


def render(function: Callable[..., Any], names: Mapping[str, Callable[..., Any]]) -> str:
    """The text from which `parse` gets `function` back; `find_unreadable` says of which functions it does not."""
    if isinstance(function, functools.partial):
        options = ", ".join(f"{name}={_text(x, names)}" for name, x in sorted(_bound(function).items()))
        return f"{render(function.func, names)}({options})"
    if not hasattr(function, "__qualname__"):  # an instance, such as a Linen module
        if not dataclasses.is_dataclass(function):
            return f"{path_of(type(function))}(...)"
        options = ", ".join(
            f"{name}={_text(x, names)}" for name, x in sorted(constructor_arguments(function).items())
        )
        return f"{render(type(function), names)}({options})"
    name = function.__qualname__
    return name if names.get(name) is function else path_of(function)


def find_unreadable(function: Any, names: Mapping[str, Callable[..., Any]]) -> list[str]:
    """What of `function` and its options cannot be had back from its text in another process: one text a reason."""
    if isinstance(function, functools.partial):
        found = find_unreadable(function.func, names)
        for name, value in _bound(function).items():
            found += _unreadable_value(value, f"{name} of {_short(function)}", names)
        return found + ([f"positional arguments of {_short(function)}"] if _unnamed(function) else [])
    if not hasattr(function, "__qualname__"):
        if not dataclasses.is_dataclass(function):
            return [f"an object of class {type(function).__name__}"]
        found = find_unreadable(type(function), names)
        for name, value in constructor_arguments(function).items():
            found += _unreadable_value(value, f"{name} of {_short(function)}", names)
        return found
    module, name = function.__module__, function.__qualname__
    if names.get(name) is function:
        return []
    if "<lambda>" in name:
        return [f"a lambda ({module})"]
    if "<locals>" in name:
        return [f"{name.replace('.<locals>', '')}, defined inside a function"]
    if module == "__main__":
        return [f"{name}, defined in the notebook or script that runs"]
    known = any(walk(found, name) is function for found in find_modules(module))
    reached = path_of(function) != f"{module}.{name}"
    return [] if known or reached else [f"{name}, which is not what {module} calls so"]


def _unreadable_value(value: Any, where: str, names: Mapping[str, Any]) -> list[str]:
    if isinstance(value, (tuple, list)):
        return [found for inner in value for found in _unreadable_value(inner, where, names)]
    if isinstance(value, dict):
        return [found for inner in value.values() for found in _unreadable_value(inner, where, names)]
    if callable(value):
        return find_unreadable(value, names)
    try:
        return [] if ast.literal_eval(_text(value, names)) is not ... else [where]
    except (ValueError, SyntaxError):
        return [where]


def _text(value: Any, names: Mapping[str, Any]) -> str:
    """An option as Python writes it."""
    if callable(value):
        return render(value, names)
    if type(value) in (tuple, list):
        inner = ", ".join(_text(x, names) for x in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {_text(x, names)}' for key, x in value.items())}}}"
    if isinstance(value, np.generic):
        value = value.item()
    return repr(str(value) if isinstance(value, Path) else value)


def _bound(function: functools.partial[Any]) -> dict[str, Any]:
    """The options of a partial function by name, those too that were given by their places."""
    if not function.args or _unnamed(function):
        return dict(function.keywords)
    return dict(zip(_places(function.func), function.args, strict=False)) | function.keywords


def _unnamed(function: functools.partial[Any]) -> bool:
    """Whether arguments are bound by their places that cannot be given by name."""
    return len(function.args) > len(_places(function.func))


def _places(function: Any) -> list[str]:
    """Names of the arguments that may be given by their places as well, in order."""
    try:
        # NNX's metaclass hides a class's own signature.
        parameters = [
            *inspect.signature(
                function.__init__ if inspect.isclass(function) else function
            ).parameters.values()
        ]
    except (TypeError, ValueError):
        return []
    parameters = parameters[1:] if inspect.isclass(function) else parameters
    return [x.name for x in parameters if x.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def constructor_arguments(instance: Any) -> dict[str, Any]:
    """What an instance of a dataclass was made with; of what has a default, functions only where they differ."""
    found = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        same = value is field.default or (callable(value) and value == field.default)
        # A Linen module's place in a tree of modules is none of its options.
        if field.init and field.name not in ("parent", "name") and not (same and not _is_literal(value)):
            found[field.name] = value
    return found


def _is_literal(value: Any) -> bool:
    return isinstance(value, (int, float, str, tuple, type(None)))


def path_of(thing: Any) -> str:
    """The dotted path of a function or class, through public modules where it is reached by them."""
    module, name = thing.__module__, thing.__qualname__
    if any(part.startswith("_") and part != "__main__" for part in module.split(".")):
        package = module.partition(".")[0]
        for known in sorted((m for m in sys.modules if m.startswith(f"{package}.")), key=len):
            if "._" not in known and getattr(sys.modules[known], name, None) is thing:
                return f"{known}.{name}"
    return f"{module}.{name}"


def _short(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def suggest_nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """``; did you mean X?`` for the known word closest to `word`, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
