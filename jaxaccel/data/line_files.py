"""Parallel texts in files of lines: ``train.en`` and ``train.de``, of which line n says the same as line n."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxaccel.data.arrays import ArraySet
from jaxaccel.data.columns import as_objects
from jaxaccel.data.splits import NAMES
from jaxaccel.data.table_files import read_text
from jaxaccel.errors import UserError

_NAME = re.compile(r"(?P<split>\w+)\.(?P<language>[a-z]{2,3}([-_][A-Za-z]{2,4})?)(\.gz)?")
_NO_LANGUAGES = frozenset(
    [
        "csv",
        "tsv",
        "txt",
        "npz",
        "npy",
        "zip",
        "tar",
        "xml",
        "htm",
        "log",
        "md",
        "py",
        "sh",
        "gz",
        "wav",
        "mp3",
        "ogg",
        "png",
        "jpg",
        "gif",
    ]
)
_FIRST = ("train", "validation", "test")


def find_line_files(folder: Path) -> dict[str, dict[str, Path]]:
    """{split: {language: its file}} of a folder with ``train.en``, ``train.de``, ``test.en``, ... (and .gz).

    Empty where the folder has no file of a training split. What is neither train, validation nor test is a split of its
    own name.

    Raises:
      UserError: two files are the same split and language, or a split lacks a language that the training split has.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or match["language"] in _NO_LANGUAGES or not path.is_file():
            continue
        split = NAMES.get(match["split"], match["split"])
        if other := found.setdefault(split, {}).get(match["language"]):
            raise UserError(f"{other} and {path} are both the {match['language']} of {split}: rename one")
        found[split][match["language"]] = path
    if "train" not in found:
        return {}
    for split, files in found.items():
        if odd := sorted(files.keys() ^ found["train"].keys()):
            lacking = split if odd[0] in found["train"] else "train"
            raise UserError(
                f"{folder} has no {lacking}.{odd[0]}, and {odd[0]} of another split: all splits need the same languages"
            )
    return {split: found[split] for split in (*_FIRST, *sorted(found.keys() - {*_FIRST})) if split in found}


def load_line_files(name: str, files: Mapping[str, Mapping[str, Path]]) -> ArraySet:
    """The data set in files of lines; an example has one text a language, without white space around it.

    Without a file for another split, a fifth of the lines becomes the split ``test``.

    Args:
      name: of the data set.
      files: {split: {language: its file}}, with ``train``.

    Raises:
      UserError: a file cannot be read, is empty, or has another number of lines than those beside it.
    """
    splits = {
        split: {language: _read_lines(path) for language, path in paths.items()}
        for split, paths in files.items()
    }
    for split, texts in splits.items():
        (first, lines), *others = texts.items()
        if odd := next((language for language, x in others if len(x) != len(lines)), ""):
            raise UserError(
                f"{files[split][first]} has {len(lines):,} lines and {files[split][odd]} has {len(texts[odd]):,}: "
                "lines of the same number belong together, so make them equally many"
            )
    columns = {
        split: {language: as_objects(lines) for language, lines in texts.items()}
        for split, texts in splits.items()
    }
    return ArraySet.of(name, columns, None)


def _read_lines(path: Path) -> list[str]:
    text = read_text(path).removesuffix("\n")
    if not text.strip():
        raise UserError(f"{path} holds no texts: it is empty")
    return [line.strip() for line in text.split("\n")]
