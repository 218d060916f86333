"""Tables that name files of sounds, with transcripts or classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jaxaccel.core.formats.bounds import shorten
from jaxaccel.data.columns import as_objects
from jaxaccel.data.sounds import SUFFIXES, SoundSet
from jaxaccel.data.table_files import Table, table_suffix
from jaxaccel.data.texts import label_columns, other_columns
from jaxaccel.errors import UserError, option

FILE_COLUMNS = ("file", "path", "file_name", "audio")
"""What the column of files may be called."""


def find_transcripts(folder: Path) -> Path | None:
    """The file ``transcripts.csv`` (or .tsv, .jsonl, and .gz) of a folder, None where there is none.

    Raises:
      UserError: there are several.
    """
    found = sorted(
        path
        for path in (folder.glob("transcripts.*") if folder.is_dir() else ())
        if table_suffix(path) and path.name.partition(".")[0] == "transcripts" and path.is_file()
    )
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} are both the transcripts of {folder}: remove one")
    return found[0] if found else None


def name_sounds(tables: Mapping[str, Table]) -> bool:
    """Whether the training table has a column of files, of which the first is a sound."""
    column = _file_column(tables["train"])
    return column is not None and _is_sound(tables["train"].columns[column][0])


def load_sound_tables(name: str, tables: Mapping[str, Table], label: str) -> SoundSet:
    """The data set of the sounds in one table, or in one for each split, which all lie in one folder.

    The column of files becomes ``id``, that of the class ``label``; the others keep their names, as in tables of texts.
    There is a column ``text``, the transcript, or one of the class.

    Args:
      name: of the data set.
      tables: {split: table}, with ``train``.
      label: the column of the class, if there is one.

    Raises:
      UserError: a file is not there, or lies outside the folder; or there are neither transcripts nor classes.
    """
    train = tables["train"]
    column = _file_column(train)
    if column is None:
        raise UserError(
            f"{train.path} has no column of the files of sounds: call one file, beside text or {label}"
        )
    root = train.path.parent
    classes, class_names = None, None
    if label in train.columns or label != "label":
        classes, class_names = label_columns(tables, label)
    elif "text" not in train.columns:
        names = ", ".join(shorten(key) for key in train.columns)
        raise UserError(
            f"{train.path} has neither a column text, the transcript, nor {label}, the class; its columns are "
            f"{names}: name the class with {option('data.label', 'NAME')}"
        )
    others = other_columns(tables, label)
    others.pop(column, None)
    splits: dict[str, dict[str, Any]] = {
        split: {
            "id": as_objects([_checked_file(table, row, column, root) for row in range(len(table.lines))])
        }
        | {key: columns[split] for key, columns in others.items() if key not in ("id", "audio", "rate")}
        | ({} if classes is None else {"label": classes[split]})
        for split, table in tables.items()
    }
    return SoundSet.of(name, root, splits, class_names)


def _file_column(table: Table) -> str | None:
    names = [name for name in FILE_COLUMNS if name in table.columns]
    return next((name for name in names if _is_sound(table.columns[name][0])), names[0] if names else None)


def _is_sound(written: Any) -> bool:
    return isinstance(written, str) and PurePosixPath(written.strip()).suffix.lower() in SUFFIXES


def _checked_file(table: Table, row: int, column: str, root: Path) -> bytes:
    """The path of a row's file below `root`."""
    written = table.columns[column][row]
    if not isinstance(written, str) or not written.strip() or "\0" in written:
        raise UserError(
            f"{table.place(row)} has no file of a sound in {column}: {shorten(repr(written), 40)}"
        )
    path = Path(os.path.normpath(written.strip()))
    if path.is_absolute() and path.is_relative_to(root.absolute()):
        path = path.relative_to(root.absolute())
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{table.place(row)} names {shorten(written)}, which is outside of {root}: give paths below that folder"
        )
    if not (root / path).is_file():
        raise UserError(f"{table.place(row)} names {shorten(written)}, and there is no such file in {root}")
    return os.fsencode(path)
