"""Leaves of a pytree by path: ``stages/0/1/conv1/kernel``, selected by ``**/kernel``."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxaccel.errors import UserError

Where = str | Sequence[str] | Callable[[str], bool]
"""Which leaves: a pattern (see `matches`), several of them, or a predicate of the path."""


def path_text(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as text, parts joined by ``/``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_path(path: tuple[Any, ...]) -> str:
    """The same without the last part of an NNX variable, which is always ``value``."""
    text = path_text(path)
    return text.removesuffix("/value")


def with_leaves(tree: Any, new: Mapping[str, Any]) -> Any:
    """`tree` with the leaves that `new` ({path: array}) has, in the dtypes that they had."""

    def leaf(path: tuple[Any, ...], x: Any) -> Any:
        return new[path_text(path)].astype(x.dtype) if path_text(path) in new else x

    return jax.tree_util.tree_map_with_path(leaf, tree)


def matches(where: str, path: str) -> bool:
    """Whether the pattern `where` selects `path`.

    ``*`` stands for anything within one part, ``**`` for any number of parts (none too), and
    ``{a,b}`` for either of several texts.
    """
    return _pattern(where).fullmatch(path) is not None


def selects(where: Where, path: str) -> bool:
    """Whether `where` selects `path`."""
    if callable(where):
        return bool(where(path))
    return any(matches(pattern, path) for pattern in ([where] if isinstance(where, str) else where))


def check_where(where: Where, paths: Iterable[str], what: str = "where") -> None:
    """Checks that every pattern of `where` selects one of `paths`.

    Raises:
      UserError: one selects none; it names the paths nearest to it.
    """
    paths = sorted(set(paths))
    for pattern in [where] if callable(where) or isinstance(where, str) else where:
        if any(selects(pattern, path) for path in paths):
            continue
        if callable(pattern):
            raise UserError(f"{what} selects none of the {len(paths)} parameters: {_some(paths)}")
        near = difflib.get_close_matches(pattern.replace("*", ""), paths, n=3, cutoff=0.0)
        raise UserError(
            f"{what}={pattern!r} matches none of the {len(paths)} parameters; nearest: {_some(near)}"
        )


def flatten_by_path(tree: Any) -> dict[str, Any]:
    """Lists the leaves of a tree: {path: leaf}."""
    return {path_text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


@functools.cache
def _pattern(where: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\{[^{}]*\})", where)
    regex = ""
    for piece in pieces:
        if piece == "**/":
            regex += "(?:.*/)?"
        elif piece == "/**":
            regex += "(?:/.*)?"
        elif piece == "**":
            regex += ".*"
        elif piece == "*":
            regex += "[^/]*"
        elif piece.startswith("{"):
            regex += "(?:" + "|".join(map(re.escape, piece[1:-1].split(","))) + ")"
        else:
            regex += re.escape(piece)
    return re.compile(regex)
