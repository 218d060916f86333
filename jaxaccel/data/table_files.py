"""Files of tables, csv, tsv and JSON lines, read whole: every row has its line number, and no row is lost."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxaccel.core.formats.bounds import FLOOR, Refused, explain_errors, open_file, shorten, size_of
from jaxaccel.errors import UserError

log = logging.getLogger(__name__)
SUFFIXES = (".csv", ".tsv", ".jsonl")
"""How their names end, also with ``.gz`` after it."""
MAX_BYTES = 1 << 31
"""Of a file, unpacked."""
_MAX_GROWTH = 64  # of gzip; text becomes some five times as large
_BOM = b"\xef\xbb\xbf"
_FIELD_LIMIT = threading.Lock()
_QUOTED = re.compile('"(?:[^"]|"")*"')


class Table(NamedTuple):
    """The rows of a file."""

    path: Path
    lines: list[int]
    """Where each row begins, from 1."""
    columns: dict[str, list[Any]]
    """{name: one value a row}: texts, or what JSON has."""

    def place(self, row: int) -> str:
        """What a message calls a row."""
        return f"{self.path}, line {self.lines[row]}"


def table_suffix(path: Path) -> str:
    """Which of `SUFFIXES` the file's name has, or ""."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_table(path: Path) -> Table:
    """The rows of a file whose name ends in one of `SUFFIXES`.

    A csv's or tsv's first row names the columns. Blank lines are passed over.

    Raises:
      UserError: it cannot be read, is not UTF-8, holds no rows, or rows with other columns.
    """
    suffix = table_suffix(path)
    text = read_text(path)
    table = _read_json(path, text) if suffix == ".jsonl" else _read_rows(path, text, suffix)
    if not table.lines:
        raise UserError(f"{path} holds no examples: it is empty, or holds the names of its columns alone")
    return table


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark, unpacked where its name ends in ``.gz``.

    Raises:
      UserError: it cannot be read, is larger than `most` bytes, or is not UTF-8.
    """
    with explain_errors(path, "is no whole gzip file"), open_file(path) as file:
        packed = path.suffix.lower() == ".gz"
        bound = min(most, max(FLOOR, _MAX_GROWTH * size_of(file))) if packed else most
        content = (gzip.GzipFile(fileobj=file) if packed else file).read(bound + 1)
        if len(content) > bound:
            raise Refused(f"holds more than {bound:,} bytes, the most that is read of it: divide it")
    content = content.removeprefix(_BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "not UTF-8"
        raise UserError(
            f"{path}, line {line} is {kind} (byte 0x{content[error.start]:02x}): save the file as UTF-8, with "
            f"iconv -f {'utf-16' if kind == 'UTF-16' else 'latin1'} -t utf-8, for instance"
        ) from error


def _read_rows(path: Path, text: str, suffix: str) -> Table:
    rows = _tsv_rows(text) if suffix == ".tsv" else _csv_rows(path, text)
    _, names = next(rows, (1, []))
    names = [name.strip() for name in names]
    unnamed = [i for i, name in enumerate(names) if not name]
    if unnamed and len(unnamed) < len(names):
        log.info("%s: %d columns without a name are left out", path, len(unnamed))
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise UserError(f"{path}, line 1: two columns are called {shorten(twice)}: rename one")
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in names]
    for line, fields in rows:
        if len(fields) != len(names):
            raise UserError(
                f"{path}, line {line} has {len(fields)} columns, and line 1 has {len(names)}: correct it"
                + (", and put a text that holds commas into quotes" if suffix == ".csv" else "")
            )
        lines.append(line)
        for column, field in zip(columns, fields, strict=True):
            column.append(field)
    return Table(path, lines, {name: column for name, column in zip(names, columns, strict=True) if name})


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, fields) of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    start = 1
    with _field_limit(len(text) + 1):
        try:
            for fields in reader:
                if fields:
                    rows.append((start, fields))
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}, line {start}: {error}: a text in quotes ends with one, and quotes inside it are doubled"
            ) from error
    return iter(rows)


@contextlib.contextmanager
def _field_limit(most: int) -> Iterator[None]:
    """Lets fields of csv have `most` characters: the limit is one of the whole process."""
    with _FIELD_LIMIT:
        before = csv.field_size_limit(most)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The same of a tsv, in which a line is a row and quotes mean nothing, unless all fields with quotes are quoted."""
    rows = [
        (number, line.removesuffix("\r").split("\t"))
        for number, line in enumerate(text.split("\n"), 1)
        if line.removesuffix("\r")
    ]
    marked = [field for _, fields in rows for field in fields if '"' in field]
    if marked and all(_QUOTED.fullmatch(field) for field in marked):
        rows = [(number, [_unquote(field) for field in fields]) for number, fields in rows]
    return iter(rows)


def _unquote(field: str) -> str:
    return field[1:-1].replace('""', '"') if '"' in field else field


def _read_json(path: Path, text: str) -> Table:
    lines: list[int] = []
    columns: dict[str, list[Any]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number} is no JSON ({shorten(str(error))}): correct it"
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f'{path}, line {number} is no object such as {{"text": "...", "label": "..."}}: {shorten(line, 40)}'
            )
        if not lines:
            columns = {key: [] for key in row}
        if odd := sorted(row.keys() ^ columns.keys()):
            here = "lacks" if odd[0] in columns else "has"
            raise UserError(
                f"{path}, line {number} {here} {shorten(odd[0])!r}, unlike line {lines[0]}: all need the same"
            )
        lines.append(number)
        for key, value in row.items():
            columns[key].append(value)
    return Table(path, lines, columns)
