"""LibriSpeech's layout (Panayotov et al. 2015): chapters of flac files, each with a file of transcripts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxaccel.core.formats.bounds import shorten
from jaxaccel.data.columns import as_objects
from jaxaccel.data.sounds import SoundSet
from jaxaccel.data.splits import NAMES
from jaxaccel.data.table_files import read_text
from jaxaccel.errors import UserError

_ENDING = ".trans.txt"
_SPLITS = {**NAMES, "dev": "validation"}
_SUFFIXES = (".flac", ".wav")
_MAX_BYTES = 1 << 26  # of the transcripts of a chapter


class Utterance(NamedTuple):
    """A file, what is said in it, and who says it."""

    path: str
    """Below the folder of the data set."""
    text: str
    speaker: int
    chapter: int


def holds_librispeech(folder: Path) -> bool:
    """Whether a file ``*.trans.txt`` lies below `folder`."""
    return next(_transcripts(folder), None) is not None


def load_librispeech(name: str, folder: Path) -> SoundSet:
    """The data set in ``FOLDER/SUBSET/SPEAKER/CHAPTER/*.flac``, each chapter with ``SPEAKER-CHAPTER.trans.txt``.

    Subsets are splits, called as TFDS calls them (``train-clean-100`` is ``train_clean100``), and those of training are
    together ``train``, those called ``dev-...`` ``validation``, and ``test-...`` ``test``. Where there is none to train
    on, or none beside it, a fifth of all utterances becomes ``test``. Examples are ``audio``,
    ``rate``, ``id`` (the path of the file), ``text``, ``speaker`` and ``chapter``.

    Raises:
      UserError: a transcript has no file, or makes no sense.
    """
    subsets: dict[str, list[Utterance]] = {}
    for path in _transcripts(folder):
        subsets.setdefault(_subset(path, folder), []).extend(_read_utterances(path, folder))
    named = {subset: _SPLITS.get(subset.partition("-")[0], "") for subset in subsets}
    if "train" not in named.values() or set(named.values()) == {"train"}:
        return SoundSet.of(
            name, folder, {"train": _columns([x for found in subsets.values() for x in found])}
        )
    groups: dict[str, list[Utterance]] = {}
    for subset, utterances in subsets.items():
        if not named[subset]:
            raise UserError(
                f"{folder / subset} is no subset train-..., dev-... or test-...: rename it, or take it out"
            )
        groups.setdefault(named[subset], []).extend(utterances)
        first, _, rest = subset.partition("-")
        if rest:
            groups[f"{first}_{rest.replace('-', '')}"] = utterances
    return SoundSet.of(name, folder, {split: _columns(found) for split, found in groups.items()})


def _transcripts(folder: Path) -> Iterator[Path]:
    """The files of transcripts below a folder, sorted within each folder."""
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(base, name) for name in sorted(files) if name.endswith(_ENDING))


def _subset(path: Path, folder: Path) -> str:
    """The folder of the subset, "" where `folder` itself is one."""
    parts = path.relative_to(folder).parts[:-1]
    return next(
        (part for part in parts if _SPLITS.get(part.partition("-")[0])), parts[0] if len(parts) > 2 else ""
    )


def _read_utterances(path: Path, folder: Path) -> Iterator[Utterance]:
    for number, line in enumerate(read_text(path, _MAX_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        key, _, text = line.strip().partition(" ")
        parts = key.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts[:2]):
            raise UserError(f"{path}, line {number} is no SPEAKER-CHAPTER-NUMBER TEXT: {shorten(line, 40)}")
        if "/" in key or os.sep in key:
            raise UserError(f"{path}, line {number} names {shorten(key, 40)}, which is no file of its folder")
        file = next((x for s in _SUFFIXES if (x := path.with_name(key + s)).is_file()), None)
        if file is None:
            raise UserError(f"{path}, line {number} names {key}, and there is no {key}.flac beside it")
        where = file.relative_to(folder).as_posix()
        yield Utterance(where, text.strip(), int(parts[0]), int(parts[1]))


def _columns(utterances: list[Utterance]) -> dict[str, np.ndarray]:
    return {
        "id": as_objects([os.fsencode(x.path) for x in utterances]),
        "text": as_objects([x.text for x in utterances]),
        "speaker": np.array([x.speaker for x in utterances], np.int64),
        "chapter": np.array([x.chapter for x in utterances], np.int64),
    }
