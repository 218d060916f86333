"""Leaves of a pytree by path: ``stages/0/1/conv1/kernel``, selected by ``**/kernel``."""

import functools
import re
from typing import Any

import jax


def path_text(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as text, parts joined by ``/``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(where: str, path: str) -> bool:
    """Whether the pattern `where` selects `path`.

    ``*`` stands for anything within one part, ``**`` for any number of parts (none too), and
    ``{a,b}`` for either of several texts.
    """
    return _pattern(where).fullmatch(path) is not None


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
