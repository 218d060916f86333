"""Texts in files: one a line, or one a row of a table."""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxaccel.core.formats.bounds import explain_errors, open_file, shorten
from jaxaccel.data.class_folders import Kind
from jaxaccel.data.lines import read_lines
from jaxaccel.data.table_files import read_table, table_suffix
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.reading import Input

TEXTS = Kind("texts", "text", frozenset({".txt", ".csv", ".tsv", ".jsonl"}))


def read_texts(path: Path, columns: Sequence[str], name: str = "task.text") -> Iterator[Input]:
    """The texts of a file as inputs ``PATH:LINE``; one that is not UTF-8 is an error of that line alone.

    Args:
      path: a csv, tsv or jsonl, whose rows are texts, or any other file, whose lines are; also with ``.gz``.
      columns: of a table, to be joined by a space.
      name: the option that named them.

    Raises:
      UserError: the file cannot be read, or the table has no such columns.
    """
    return _read_rows(path, columns, name) if table_suffix(path) else _read_lines(path)


def decode_text(line: bytes, name: str) -> Input:
    """A line in UTF-8 as a text."""
    try:
        return Input(name, line.decode())
    except UnicodeDecodeError as error:
        return Input(name, error=f"not UTF-8 (byte 0x{line[error.start]:02x} at {error.start})")


def _read_lines(path: Path) -> Iterator[Input]:
    number = 0
    with explain_errors(path, "is no whole gzip file"), open_file(path) as content:
        file: Any = gzip.GzipFile(fileobj=content) if path.suffix.lower() == ".gz" else content
        for lines in read_lines(file, str(path)):
            for line in lines:
                number += 1
                yield decode_text(line, f"{path}:{number}")


def _read_rows(path: Path, columns: Sequence[str], named: str) -> Iterator[Input]:
    table = read_table(path)
    if missing := [name for name in columns if name not in table.columns]:
        raise UserError(
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(map(shorten, table.columns))}: the "
            f"model was trained with {option(named)} {' '.join(columns)}"
        )
    for line, *parts in zip(table.lines, *(table.columns[name] for name in columns), strict=True):
        text, name = " ".join(str(part) for part in parts), f"{path}:{line}"
        if any(part is None or isinstance(part, (list, dict)) for part in parts):
            yield Input(name, error=f"{' '.join(columns)} must hold texts, got {text:.60}")
        else:
            yield _checked(text, name)


def _checked(text: str, name: str) -> Input:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON may write half of a pair
        return Input(name, error="half of a surrogate pair is no character")
    return Input(name, text)
