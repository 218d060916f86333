"""Data sets of files of sounds, each decoded when its example is read."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.data.arrays import ArraySet, ArraySource
from jaxaccel.data.audio import decode_audio
from jaxaccel.data.class_folders import Kind, list_files
from jaxaccel.data.columns import as_objects
from jaxaccel.data.source import Example
from jaxaccel.data.splits import divide

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})
SOUNDS = Kind("sounds", "sound", SUFFIXES)


@dataclasses.dataclass(frozen=True)
class SoundSet:
    """Files of sounds and what is known of each, of which any split can be opened."""

    root: Path
    """What the paths of files are relative to."""
    table: ArraySet
    """All but the sounds themselves; ``id`` is the path of the file."""

    @classmethod
    def of(
        cls,
        name: str,
        root: Path,
        splits: Mapping[str, Mapping[str, Any]],
        class_names: Sequence[str] | None = None,
    ) -> SoundSet:
        """The data set of the columns of each split; a single one is divided by the paths of files.

        Raises:
          UserError: as `ArraySet.of`.
        """
        table = ArraySet.of(name, splits, class_names)
        if len(splits) == 1:
            (columns,) = splits.values()
            groups = columns["label"].tolist() if "label" in columns else [0] * len(columns["id"])
            # By their names, as pictures are: another file moves none of the others to the other side.
            table = dataclasses.replace(table, positions=divide(groups, columns["id"].tolist()))
        return cls(root, table)

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.table.name

    @property
    def splits(self) -> dict[str, int]:
        """{split: number of its examples}."""
        return self.table.splits

    def open(self, split: str) -> SoundSource:
        """The split, written as TFDS does.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        return SoundSource(self.root, self.table.open(split))

    def digest(self) -> str:
        """SHA-256 of the names and sizes of all files, and of all that is known of them."""
        total = hashlib.sha256(self.table.digest().encode())
        for path in self.table.columns["id"].values:
            total.update(f"{(self.root / os.fsdecode(path)).stat().st_size}\n".encode())
        return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class SoundSource:
    """A split of files of sounds, as examples ``audio`` int16 (n,), ``rate`` in Hz, ``id``, and the columns there are.

    Raises UserError when a file cannot be read.
    """

    root: Path
    table: ArraySource

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.table.name

    @property
    def split(self) -> str:
        """As it was asked for."""
        return self.table.split

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example."""
        import tensorflow_datasets as tfds

        return {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
            "rate": tfds.features.Tensor(shape=(), dtype=np.int64),
            **self.table.features,
        }

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int, /) -> Example:
        known = self.table[index]
        audio, rate = decode_audio(self.root / os.fsdecode(known["id"].item()))
        return {"audio": audio, "rate": np.array(rate, np.int64), **known}

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        return [self[int(i)] for i in indices]

    def read_column(self, key: str) -> Iterator[np.ndarray]:
        """One part of every example; files are opened only where it is the sound or its rate."""
        return ((self if key in ("audio", "rate") else self.table)[i][key] for i in range(len(self)))


def load_sound_folder(name: str, folder: Path) -> SoundSet:
    """The data set in ``FOLDER/CLASS/**/*.wav`` (.flac, ...) or ``FOLDER/train/CLASS/**``, as `folder.FolderSet` is.

    Raises:
      UserError: there are no sounds.
    """
    listing = list_files(folder, SOUNDS)
    numbers = {class_name: i for i, class_name in enumerate(listing.classes)}
    splits = {
        split or "train": {
            "id": as_objects([os.fsencode(file.path) for file in files]),
            "label": np.array([numbers[file.class_name] for file in files], np.int64),
        }
        for split, files in listing.splits.items()
    }
    return SoundSet.of(name, folder, splits, listing.classes)
