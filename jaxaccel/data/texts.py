"""Data sets of texts: tables in files, and folders with one subfolder of text files a class."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.core.formats.bounds import shorten
from jaxaccel.data.arrays import ArraySet
from jaxaccel.data.class_folders import Kind, list_files
from jaxaccel.data.columns import as_objects
from jaxaccel.data.splits import NAMES, divide
from jaxaccel.data.table_files import Table, read_table, read_text, table_suffix
from jaxaccel.errors import UserError, option

log = logging.getLogger(__name__)
TEXT_FILES = Kind("texts", "text", frozenset({".txt"}))
_MAX_TEXT_BYTES = 1 << 26  # of one example
_CLASS_NUMBER = re.compile(r"0|[1-9]\d{0,3}")
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,30})(\.\d+)?([eE][-+]?\d{1,3})?")


def find_tables(folder: Path) -> dict[str, Path]:
    """{split: its file} of a folder with ``train.csv``, ``test.csv``, ... (or .tsv, .jsonl, and .gz).

    Empty where the folder has no file of a training split.

    Raises:
      UserError: two files are the same split, or they are of different kinds.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        split = NAMES.get(path.name.partition(".")[0].lower())
        if split is None or not table_suffix(path) or not path.is_file():
            continue
        if split in found:
            raise UserError(f"{found[split]} and {path} are both the split {split}: rename one")
        found[split] = path
    if "train" not in found:
        return {}
    if len(kinds := {table_suffix(path) for path in found.values()}) > 1:
        raise UserError(f"{folder} holds splits as {' and '.join(sorted(kinds))}: make them one kind of file")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def read_tables(files: Mapping[str, Path]) -> dict[str, Table]:
    """{split: its table} of {split: its file}; errors are those of `read_table`."""
    return {split: read_table(path) for split, path in files.items()}


def load_tables(name: str, tables: Mapping[str, Table], label: str) -> ArraySet:
    """The data set in one table, or in one for each split; its classes are those of the training table.

    The column of the class becomes ``label``; a table without one, such as one of two languages, does without. Whole
    numbers from 0 are the numbers of classes, other labels their names. The other columns keep their names: they are
    numbers where all their values are, else texts; ``text`` is text. Without a file for another split, a fifth of each
    class becomes the split ``test``.

    Args:
      name: of the data set.
      tables: {split: table}, with ``train``.
      label: the column of the class.

    Raises:
      UserError: a table holds no examples of classes.
    """
    others = other_columns(tables, label)
    splits = {split: {key: columns[split] for key, columns in others.items()} for split in tables}
    if (
        label == "label" and label not in tables["train"].columns
    ):  # parallel texts; the task says what it lacks
        return ArraySet.of(name, splits, None)
    classes, class_names = label_columns(tables, label)
    return ArraySet.of(
        name, {s: {"label": classes[s]} | columns for s, columns in splits.items()}, class_names
    )


def label_columns(tables: Mapping[str, Table], label: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """{split: the number of each row's class}, and the names of classes, which are those of the training table.

    Raises:
      UserError: there is no such column, or an example of no class.
    """
    labels = {split: _labels(table, label) for split, table in tables.items()}
    class_names = _class_names(labels["train"])
    numbers = {class_name: i for i, class_name in enumerate(class_names)}
    for split, table in tables.items():
        for row, class_name in enumerate(labels[split]):
            if class_name not in numbers:
                raise UserError(
                    f"{table.place(row)} has the {label} {shorten(class_name)!r}, which is none of the "
                    f"{len(class_names)} classes of {tables['train'].path.name}: correct it, or add it there"
                )
    return {split: np.array([numbers[x] for x in labels[split]], np.int64) for split in tables}, class_names


def load_text_folder(name: str, folder: Path) -> ArraySet:
    """The data set in ``FOLDER/CLASS/**/*.txt`` or ``FOLDER/train/CLASS/**``, as `folder.FolderSet` is one of pictures.

    Examples are ``id``, the file's path below the folder, ``text`` without white space around it, and ``label``.

    Raises:
      UserError: there are no texts, or one that cannot be read.
    """
    listing = list_files(folder, TEXT_FILES)
    numbers = {class_name: i for i, class_name in enumerate(listing.classes)}
    splits = {
        split or "train": {
            "id": as_objects([os.fsencode(file.path) for file in files]),
            "text": as_objects([read_text(folder / file.path, _MAX_TEXT_BYTES).strip() for file in files]),
            "label": np.array([numbers[file.class_name] for file in files], np.int64),
        }
        for split, files in listing.splits.items()
    }
    made = ArraySet.of(name, splits, listing.classes)
    if "" not in listing.splits:
        return made
    # By their names, as pictures are: another file moves none of the others to the other side.
    train = splits["train"]
    return dataclasses.replace(made, positions=divide(train["label"].tolist(), train["id"].tolist()))


def _labels(table: Table, column: str) -> list[str]:
    """The class of each row, as text."""
    if column not in table.columns:
        names = ", ".join(shorten(name) for name in table.columns) or "without a name"
        raise UserError(
            f"{table.path} has no column {column!r} for the class; its columns are {names}: name one with "
            f"{option('data.label', 'NAME')}"
        )
    return [_label(table, row, column, value) for row, value in enumerate(table.columns[column])]


def _label(table: Table, row: int, column: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{table.place(row)} has an empty {column}: give its class, or take the line out")
    if not isinstance(value, (str, int)):
        raise UserError(
            f"{table.place(row)} has the {column} {value!r:.40}: a class is a text or a whole number"
        )
    return _checked_text(table, row, column, str(value).strip())


def _class_names(labels: Sequence[str]) -> list[str]:
    if all(_CLASS_NUMBER.fullmatch(label) for label in labels):
        return [str(i) for i in range(max(map(int, labels)) + 1)]
    return sorted(set(labels))


def other_columns(tables: Mapping[str, Table], label: str) -> dict[str, dict[str, np.ndarray]]:
    """{key: {split: values}} of all columns but that of the class, which must be the same in all splits.

    Raises:
      UserError: a split lacks a column, there is no other column, or its values are neither texts nor numbers.
    """
    train = tables["train"]
    for table in tables.values():
        if odd := sorted(table.columns.keys() ^ train.columns.keys()):
            one, other = (table, train) if odd[0] in table.columns else (train, table)
            raise UserError(f"{one.path} has a column {shorten(odd[0])!r}, and {other.path} has none: add it")
    names = [name for name in train.columns if name != label]
    if "label" in names:
        log.info("%s: the column label is left out, %s is the class", train.path, label)
        names.remove("label")
    if not names:
        raise UserError(f"{train.path} holds classes and nothing else: add a column text")
    found = {key: _convert(key, tables) for key in names}
    return {key: columns for key, columns in found.items() if columns is not None}


def _convert(key: str, tables: Mapping[str, Table]) -> dict[str, np.ndarray] | None:
    """{split: texts or numbers} of a column, None where it is neither."""
    first = next(iter(tables.values()))
    values = [value for table in tables.values() for value in table.columns[key]]
    if table_suffix(first.path) != ".jsonl":
        kind: type = str if key == "text" else _csv_kind(values)
    elif all(isinstance(value, (int, float)) for value in values):
        kind = int if all(isinstance(value, int) for value in values) else float
    elif any(isinstance(value, str) for value in values):
        kind = str
    else:
        log.info("%s: %s is left out, it holds neither texts nor numbers", first.path, key)
        return None
    if kind is not str:
        return {split: _numbers(table, key, kind) for split, table in tables.items()}
    return {
        split: as_objects([_checked_text(table, row, key, x) for row, x in enumerate(table.columns[key])])
        for split, table in tables.items()
    }


def _csv_kind(values: Sequence[str]) -> type:
    if all(_WHOLE.fullmatch(value) for value in values):
        return int
    return float if all(_NUMBER.fullmatch(value) for value in values) else str


def _numbers(table: Table, key: str, kind: type) -> np.ndarray:
    try:
        numbers = [kind(value) for value in table.columns[key]]
        bad = next((row for row, x in enumerate(numbers) if not -(2**63) <= x < 2**63 and kind is int), None)
        bad = next((row for row, x in enumerate(numbers) if not math.isfinite(x)), bad)
    except OverflowError:
        numbers, bad = [], 0
    if bad is not None:
        raise UserError(f"{table.place(bad)} has a {key} that is no finite number of 64 bits: correct it")
    return np.array(numbers, np.int64 if kind is int else np.float64)


def _checked_text(table: Table, row: int, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"{table.place(row)} has the {key} {value!r:.40}, and other lines have texts: make all texts"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may write half of a pair
        raise UserError(
            f"{table.place(row)} has half of a surrogate pair in {key}, which is no character: correct it"
        ) from error
    return value
