"""Data sets by name, folder, file or arrays, with random access to their examples; no TensorFlow, no JAX."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxaccel.data.arrays import find_session_arrays, load_npz
from jaxaccel.data.class_folders import holds_any
from jaxaccel.data.examples import read_column
from jaxaccel.data.folder import FolderSet
from jaxaccel.data.image_files import IMAGES
from jaxaccel.data.librispeech import holds_librispeech, load_librispeech
from jaxaccel.data.line_files import find_line_files, load_line_files
from jaxaccel.data.order import permutation
from jaxaccel.data.prepare import prepare
from jaxaccel.data.prepared import PreparedSet
from jaxaccel.data.sound_tables import find_transcripts, load_sound_tables, name_sounds
from jaxaccel.data.sounds import SOUNDS, load_sound_folder
from jaxaccel.data.source import Example, Source
from jaxaccel.data.table_files import table_suffix
from jaxaccel.data.texts import TEXT_FILES, find_tables, load_tables, load_text_folder, read_tables
from jaxaccel.data.tfds_names import INFO_FILE, find_prepared, known_names, parse_name
from jaxaccel.errors import UserError, option

_VALIDATION = (
    0x76616C69  # keys the choice of validation examples: part of what a run means, never to be changed
)


class DataSet(Protocol):
    """A data set, of which any split can be opened."""

    @property
    def splits(self) -> Mapping[str, int]:
        """{split: number of its examples}."""
        ...

    def open(self, split: str) -> Source:
        """The split, with TFDS's slicing: ``train[:90%]``, ``train+test``."""
        ...

    def digest(self) -> str:
        """SHA-256 by which it is seen that the data set has changed: of arrays' content, of files' names and sizes."""
        ...


def open_source(
    name: str,
    split: str,
    *,
    directory: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
    label: str = "label",
) -> Source:
    """Opens a split of a data set, preparing the data set first if that has not been done.

    Args:
        name: a TFDS data set as TFDS writes it (``mnist``, ``cmaterdb/bangla``, ``mnist:3.0.1``), the
            path of a prepared one, a folder of images, sounds or texts (``folder:PATH``, or a path with a separator), a
            file ``PATH.npz``, ``PATH.csv``, ``PATH.tsv`` or ``PATH.jsonl`` (the last three also as ``.gz``), a folder
            of these called ``train``, ``test``, ... or ``transcripts``, a folder of ``train.en``,
            ``train.de``, ..., or what `jaxaccel.data.from_arrays` returned.
        split: a split with TFDS's slicing, such as ``test``, ``train[:90%]`` or ``train+test``.
        directory: where prepared data sets lie; by default ``$TFDS_DATA_DIR``, else
            ``~/tensorflow_datasets``.
        downloads: a folder with the original files, to prepare without a network.
        label: the column of a csv, tsv or jsonl file that holds the class.

    Raises:
        UserError: the data set or split does not exist, is damaged, or cannot be prepared.
    """
    return open_set(name, directory=directory, downloads=downloads, label=label).open(split)


def open_set(
    name: str,
    *,
    directory: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
    label: str = "label",
) -> DataSet:
    """Opens a data set of that name; arguments and errors are those of `open_source`."""
    if (arrays := find_session_arrays(name)) is not None:
        return arrays
    path = _as_path(name)
    if path is not None:
        return _open_path(name, path, label)
    directory = Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    dataset = parse_name(name)
    prepared = find_prepared(dataset, directory)
    if prepared is None:
        prepared = prepare(dataset, directory, None if downloads is None else Path(downloads).expanduser())
    return PreparedSet(name, prepared)


def _open_path(name: str, path: Path, label: str) -> DataSet:
    if path.suffix == ".npz":
        return load_npz(name, path)
    if table_suffix(path) and not path.is_dir():
        return _open_tables(name, {"train": path}, label)
    if (path / INFO_FILE).is_file():
        return PreparedSet(name, path)
    if file := find_transcripts(path):
        return load_sound_tables(name, read_tables({"train": file}), label)
    if not holds_any(path, IMAGES):  # beside pictures, tables and texts may say something about them
        if files := find_tables(path):
            return _open_tables(name, files, label)
        if lines := find_line_files(path):
            return load_line_files(name, lines)
        if holds_librispeech(path):
            return load_librispeech(name, path)
        if holds_any(path, SOUNDS):
            return load_sound_folder(name, path)
        if holds_any(path, TEXT_FILES):
            return load_text_folder(name, path)
    return FolderSet(name, path)


def _open_tables(name: str, files: Mapping[str, Path], label: str) -> DataSet:
    tables = read_tables(files)
    return (load_sound_tables if name_sounds(tables) else load_tables)(name, tables, label)


def _as_path(name: str) -> Path | None:
    """The folder or file that `name` means, or None when it is the name of a TFDS data set."""
    if name.startswith("folder:"):
        return Path(name.removeprefix("folder:")).expanduser()
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".npz" or table_suffix(path):
        return path
    # A relative path such as data/flowers reads like NAME/CONFIG: a data set goes before a folder.
    if path.is_dir() and parse_name(name, strict=False).name not in known_names():
        return path
    return None


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run reads."""

    train: Source
    evaluation: Source
    """Evaluated while training: the best checkpoint is chosen by it."""
    digest: str
    """Of the data set that they are splits of."""
    test: Source | None
    """Evaluated once, at the end, with the best checkpoint; None where evaluation has the test split itself."""

    @property
    def held_out(self) -> tuple[Source, ...]:
        """What is not trained on: `evaluation`, and `test` if there is one."""
        return (self.evaluation,) if self.test is None else (self.evaluation, self.test)


def open_splits(
    name: str,
    *,
    train: str = "train",
    evaluation: str = "test",
    validation: float = 0.0,
    directory: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
    label: str = "label",
    eval_name: str = "",
) -> Splits:
    """Opens the splits that a run trains on, evaluates on and is tested on.

    Where a share of the training split is set aside for validation, or the data set has a split ``validation`` beside
    ``test``, evaluation takes that, and `evaluation` is the test at the end. ``test`` means ``validation`` where there
    is no other.

    Args:
      name: of the data set, as in `open_source`.
      train: split to train on.
      evaluation: split to evaluate on.
      validation: share of the training split to set aside, in [0, 1). Which examples that are depends on the number of
        examples in the split alone.
      directory: see `open_source`.
      downloads: see `open_source`.
      label: see `open_source`.
      eval_name: of the data set that is evaluated and tested on, where it is another one.

    Raises:
      UserError: as of `open_source`, or the share leaves nothing on one side.
    """
    data = open_set(name, directory=directory, downloads=downloads, label=label)
    held = open_set(eval_name, directory=directory, downloads=downloads, label=label) if eval_name else data
    there, digest = held.splits, data.digest()
    if eval_name:
        digest = hashlib.sha256(f"{digest} {held.digest()}".encode()).hexdigest()
    clear = bool(eval_name) or "validation" not in train
    own = evaluation == "test" and there.get("validation") and clear  # for validation
    whole = data.open(train)
    if not (own or validation):
        return Splits(whole, held.open(evaluation), digest, None)
    test = None if evaluation == "test" and not there.get("test") else held.open(evaluation)
    if validation:
        return Splits(*set_aside(whole, validation), digest, test)
    return Splits(whole, held.open("validation"), digest, test)


def set_aside(source: Source, share: float) -> tuple[Source, Source]:
    """What is left of a split for training, and `share` of its examples, each in its old order.

    Raises:
      UserError: nothing is left on one side.
    """
    count = round(share * len(source)) if 0 < share < 1 else 0
    if not 0 < count < len(source):
        raise UserError(
            f"{option('data.validation')} must leave examples on both sides, and {share:g} of the {len(source)} "
            f"examples of split {source.split!r} are {count}"
        )
    chosen = np.zeros(len(source), bool)
    chosen[permutation(_VALIDATION, 0, len(source))[:count]] = True
    training = Part(source, np.flatnonzero(~chosen), f"{source.split} without its validation share")
    return training, Part(source, np.flatnonzero(chosen), f"validation share of {source.split}")


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of a split."""

    whole: Source
    positions: np.ndarray
    split: str

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.whole.name

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example."""
        return self.whole.features

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int, /) -> Example:
        return self.whole[int(self.positions[index])]

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        return self.whole.__getitems__([int(self.positions[i]) for i in indices])

    def read_column(self, key: str) -> Iterator[np.ndarray]:
        """One part of every example, as `jaxaccel.data.examples.read_column` has it."""
        column = list(read_column(self.whole, key))
        return (column[i] for i in self.positions)
