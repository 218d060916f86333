"""Arrays in memory as a data set: those of a Python session, or of a file.npz."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.core.formats import npz_files
from jaxaccel.data.audio import check_rate
from jaxaccel.data.columns import Column, as_objects, class_column, to_columns
from jaxaccel.data.source import Example
from jaxaccel.data.splits import NAMES, divide, take
from jaxaccel.errors import UserError

log = logging.getLogger(__name__)
_PREFIX = "arrays:"
_SESSION: dict[str, ArraySet] = {}
"""What `from_arrays` was given in this process, by the name that it returned."""


def from_arrays(
    train: Any, *, test: Any = None, validation: Any = None, class_names: Sequence[str] | None = None
) -> str:
    """Makes a data set of arrays, and returns its name: ``ja.training.Data(name=ja.data.from_arrays(...))``.

    The name holds a digest of all that is in the arrays, so that a run is resumed with the same data only. Another
    Python session calls `from_arrays` on the same arrays first. The arrays must not change.

    Args:
      train: what to train on: a mapping from keys to arrays with one row an example (``{"image": x, "label": y}``), a
        pandas DataFrame, a sequence of such mappings for one example each, or of pairs (image, label). Without `test`
        and `validation`, a fifth of each class of it becomes the split ``test``.
      test: the same, for the split ``test``.
      validation: the same, for the split ``validation``.
      class_names: of the labels 0, 1, ...; by default the numbers, or the sorted texts where labels are texts.

    What the keys hold:
      - ``label``: integers or texts, (N,): the number of a class.
      - ``image``: (N, H, W, C) or (N, H, W), or pictures of Pillow or of different sizes. Whole numbers are 0..255,
        also if they are floats; other floats 0..1, or 0..255 where the largest is above 2; with values below 0 they are
        taken as they are.
      - ``audio``: sounds of one channel and of any lengths: int16, or floats from -1 to 1, which become int16.
        ``rate``, in Hz, is beside it: one number for all, or one for each.
      - any other: texts, or numbers of any shape, as they are.

    Raises:
      UserError: arrays of different lengths, a label that is no class, values that are no picture.
    """
    given = {"train": train, "test": test, "validation": validation}
    columns = {split: to_columns(examples) for split, examples in given.items() if examples is not None}
    made = ArraySet.of("", columns, class_names)
    name = f"{_PREFIX}{made.digest()[:16]}"
    _SESSION[name] = dataclasses.replace(made, name=name)
    return name


def find_session_arrays(name: str) -> ArraySet | None:
    """What `from_arrays` gave that name, None for any other name.

    Raises:
      UserError: that was in another session, or the arrays have changed.
    """
    if not name.startswith(_PREFIX):
        return None
    found = _SESSION.get(name)
    if found is None:
        raise UserError(
            f"{name} are arrays of another Python session: call from_arrays on the same ones first"
        )
    if f"{_PREFIX}{found.digest()[:16]}" != name:
        raise UserError(f"{name} have changed since from_arrays was called: call it again, or on a copy")
    return found


def load_npz(name: str, path: Path) -> ArraySet:
    """The data set in a file.npz: arrays ``image`` and ``label``, or ``train_image``, ``test_image``, ...

    An array ``class_names`` of texts names the classes.

    Raises:
      UserError: there is no such file, it is damaged, or its arrays are no data set; nothing of it is executed.
    """
    arrays = _read_npz(path)
    class_names = arrays.pop("class_names", None)
    splits: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        prefix, _, rest = key.partition("_")
        split = NAMES.get(prefix, "") if rest else ""
        splits.setdefault(split, {})[rest if split else key] = array
    if not arrays or ("" in splits and len(splits) > 1) or ("" not in splits and "train" not in splits):
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: name its arrays image and label, or train_image, "
            "train_label, test_image, test_label"
        )
    try:
        columns = {split or "train": to_columns(examples) for split, examples in splits.items()}
        return ArraySet.of(name, columns, None if class_names is None else class_names.astype(str).tolist())
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = npz_files.read(path)  # bounds what the file may hold
    with np.load(path, allow_pickle=False) as archive:
        return arrays | {key: archive[key] for key in archive.files if key not in arrays}  # texts


@dataclasses.dataclass(frozen=True)
class ArraySet:
    """Arrays in memory, of which any split can be opened."""

    name: str
    columns: Mapping[str, Column]
    """Over the examples of all splits, one after the other."""
    positions: Mapping[str, Sequence[int]]
    """{split: its examples}."""

    @classmethod
    def of(
        cls, name: str, splits: Mapping[str, Mapping[str, Any]], class_names: Sequence[str] | None
    ) -> ArraySet:
        """The data set of the arrays of each split.

        Raises:
          UserError: the splits have different keys, or a column is not what its key says.
        """
        keys = {split: sorted(columns) for split, columns in splits.items()}
        if len({tuple(names) for names in keys.values()}) > 1:
            raise UserError(f"the splits hold different arrays: {keys}")
        columns = {
            key: Column.of(key, _join([x[key] for x in splits.values()]), class_names)
            for key in keys["train"]
        }
        columns = _check_sounds(columns)
        lengths = [len(next(iter(part.values()))) for part in splits.values()]
        ends = np.cumsum([0, *lengths]).tolist()
        positions: dict[str, Sequence[int]] = {
            split: range(start, stop) for split, start, stop in zip(splits, ends[:-1], ends[1:], strict=True)
        }
        if len(splits) == 1:
            labels = class_column(columns)
            groups = [0] * ends[-1] if labels is None else labels.values.tolist()
            positions = dict(divide(groups, [str(i).encode() for i in range(ends[-1])]))
        return cls(name, columns, positions)

    @property
    def splits(self) -> dict[str, int]:
        """{split: number of its examples}."""
        return {split: len(positions) for split, positions in self.positions.items()}

    def open(self, split: str) -> ArraySource:
        """The split, written as TFDS does.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        return ArraySource(self.name, split, self.columns, take(self.name, split, self.positions))

    def digest(self) -> str:
        """SHA-256 of all that the data set holds."""
        total = hashlib.sha256(repr(sorted(self.splits.items())).encode())
        for key in sorted(self.columns):
            total.update(key.encode())
            self.columns[key].update(total)
        return total.hexdigest()


def _check_sounds(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns, the rates of whose sounds are checked and whole numbers of 64 bits.

    Raises:
      UserError: there are sounds without rates, or a rate is none.
    """
    if "audio" not in columns or columns["audio"].kind != "sound":
        return dict(columns)
    rates = columns["rate"].values if "rate" in columns else None
    if rates is None:
        raise UserError("audio needs a rate beside it, in Hz: {'audio': [...], 'rate': 16000}")
    if rates.dtype.kind not in "iuf" or rates.ndim != 1 or not (rates == np.round(rates)).all():
        raise UserError("rate holds one whole number of Hz for each sound, or one for all")
    for i, rate in enumerate(rates.tolist()):
        check_rate(int(rate), f"the sound {i}")
    return {**columns, "rate": Column("numbers", rates.astype(np.int64))}


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The examples of several splits, one after the other; of objects where their shapes differ."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape[1:], part.dtype.kind) for part in parts}) == 1:
        return np.concatenate(parts)
    return as_objects([row for part in parts for row in part])


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A split of arrays in memory."""

    name: str
    split: str
    columns: Mapping[str, Column]
    positions: np.ndarray
    """Rows of the columns that belong to the split."""

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example."""
        return {key: column.feature() for key, column in self.columns.items()}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int, /) -> Example:
        return {key: column.example(self.positions[index]) for key, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        return [self[int(i)] for i in indices]
