"""Loads the tokenizers of others from files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxaccel.core.formats.bounds import explain_errors, read_bytes, shorten
from jaxaccel.data.tokenizers.tokenizer import (
    END,
    PAD,
    START,
    UNKNOWN,
    WHAT,
    Tokenizer,
    make_wordpiece,
    open_text,
)
from jaxaccel.errors import UserError

MAX_BYTES = 1 << 26
"""Of a tokenizer's file; the largest that are in use have some twenty million."""


def load_tokenizer(place: str | os.PathLike[str], *, lowercase: bool | None = None) -> Tokenizer:
    """The tokenizer in a file; nothing of it is executed.

    Args:
      place: a ``tokenizer.json``, a ``vocab.txt`` of BERT (one piece of a word a line), or a folder that holds one of
        these, the first of them if both.
      lowercase: whether a ``vocab.txt``, which does not say so, is of lower-cased text without accents; by default
        if none of its pieces has a capital letter from A to Z.

    Raises:
      UserError: it is not there, too large or damaged.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor vocab.txt")
        path = found[0]
    with explain_errors(path, WHAT):
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    if path.suffix == ".txt":
        return _of_vocabulary(path, text, lowercase)
    try:
        open_text(text)
    except UserError as error:
        if not error.message.startswith("tokenizer.json "):
            raise
        raise UserError(f"{path} {error.message.partition(' ')[2]}") from error.__cause__
    return Tokenizer(text)


def _of_vocabulary(path: Path, text: str, lowercase: bool | None) -> Tokenizer:
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    ids: dict[str, int] = {}
    for number, piece in enumerate(lines):
        if ids.setdefault(piece, number) != number:
            raise UserError(
                f"{path}, line {number + 1}: {shorten(repr(piece))} stands in line {ids[piece] + 1} already: get the "
                "file again"
            )
    if missing := [name for name in (PAD, UNKNOWN, START, END) if name not in ids]:
        raise UserError(
            f"{path} is no vocabulary of BERT: it has no line {missing[0]}; give a tokenizer.json"
        )
    if lowercase is None:
        lowercase = not any(re.search("[A-Z]", piece) for piece in ids if not piece.startswith("["))
    return make_wordpiece(ids, lowercase)
