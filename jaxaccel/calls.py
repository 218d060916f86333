"""Functions with keyword arguments, written as Python writes calls: ``pad_and_crop(padding=4)``.

A recipe holds real functions (`functools.partial` binds their options). The command line and
``recipe.json`` need them as text: `render` writes one, `parse` reads it back. Nothing is evaluated:
arguments must be literals or such functions, and a name is one of a given namespace or an importable dotted path.
"""

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxaccel.errors import UserError


def parse(text: str, names: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function that `text` names, with its keyword arguments bound.

    Args:
      text: ``name``, ``name(option=literal, other=function(...))`` or ``package.module.name(...)``.
      names: what bare names stand for.

    Raises:
      UserError: `text` is no such call, or nothing has that name (the nearest one is suggested).
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("positional arguments")
        path = ast.unparse(call.func)
        options = {str(k.arg): _value(k.value, names) for k in call.keywords}
        if not all(part.isidentifier() for part in path.split(".")):
            raise ValueError("no name")
    except UserError:
        raise
    except (SyntaxError, ValueError) as error:
        raise UserError(f"cannot read {text!r}: write it as NAME or NAME(option=value, ...)") from error
    function = names[path] if path in names else _imported(path, names)
    return functools.partial(function, **options) if options else function


def _value(node: ast.expr, names: Mapping[str, Callable[..., Any]]) -> Any:
    """A literal, or a function that is written as any other."""
    named = node.func if isinstance(node, ast.Call) else node
    if isinstance(named, (ast.Name, ast.Attribute)):
        return parse(ast.unparse(node), names)
    return ast.literal_eval(node)


def render(function: Callable[..., Any], names: Mapping[str, Callable[..., Any]]) -> str:
    """The text from which `parse` gets `function` back (for functions that can be imported)."""
    if isinstance(function, functools.partial):
        options = ", ".join(
            f"{name}={render(value, names) if callable(value) else repr(value)}"
            for name, value in sorted(function.keywords.items())
        )
        return f"{render(function.func, names)}({options})"
    if not hasattr(function, "__qualname__"):  # an instance, such as a Linen module: its repr says it all
        return " ".join(repr(function).split())
    name = function.__qualname__
    return name if names.get(name) is function else f"{function.__module__}.{name}"


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """``; did you mean X?`` for the known word closest to `word`, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _imported(path: str, names: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"unknown name {path!r}{nearest(path, names)} (known: {', '.join(sorted(names))})")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import {path!r}: {error}") from error
