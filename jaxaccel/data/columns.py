"""What the arrays of a data set hold, inferred from their keys and values."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.data.audio import to_int16
from jaxaccel.data.images import to_pixels
from jaxaccel.errors import UserError

log = logging.getLogger(__name__)
PAIR = ("image", "label")
"""What the two parts of an example are that has no keys."""


def to_columns(examples: Any) -> dict[str, np.ndarray]:
    """{key: one row an example}, of a mapping, a data frame, or a sequence of mappings or of pairs.

    Rows of different shapes, and texts, are arrays of objects.

    Raises:
      UserError: it is none of these, has no examples, or columns of different lengths.
    """
    if hasattr(examples, "keys"):
        columns = {str(key): _to_array(examples[key]) for key in examples.keys()}  # noqa: SIM118 (a frame's own)
        if "audio" in columns and "rate" in columns and not columns["rate"].ndim:  # one for all
            columns["rate"] = np.repeat(columns["rate"], len(columns["audio"]))
    elif (
        hasattr(examples, "__len__")
        and hasattr(examples, "__getitem__")
        and not isinstance(examples, (str, bytes))
    ):
        columns = _of_rows([examples[i] for i in range(len(examples))])
    else:
        raise UserError(
            f"arrays are a mapping such as {{'image': x, 'label': y}} or a sequence of examples, not {examples!r:.60}"
        )
    lengths = {key: len(column) if column.ndim else 0 for key, column in columns.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise UserError(f"all arrays need the same number of examples, at least one, got {lengths}")
    return columns


def _of_rows(rows: Sequence[Any]) -> dict[str, np.ndarray]:
    def fields(row: Any) -> dict[str, Any]:
        if hasattr(row, "keys"):
            return {str(key): row[key] for key in row.keys()}  # noqa: SIM118
        if isinstance(row, (tuple, list)) and len(row) == len(PAIR):
            return dict(zip(PAIR, row, strict=True))
        raise UserError(f"an example is a mapping or a pair (image, label), not {row!r:.60}")

    examples = [fields(row) for row in rows]
    for number, example in enumerate(examples):
        if example.keys() != examples[0].keys():
            raise UserError(
                f"example {number} has {', '.join(example)}, example 0 has {', '.join(examples[0])}"
            )
    return {
        key: _to_array([example[key] for example in examples]) for key in (examples[0] if examples else ())
    }


def _to_array(values: Any) -> np.ndarray:
    """One row an example; an array of objects where rows are texts, or arrays of different shapes."""
    if hasattr(values, "to_numpy"):  # a column of a data frame
        values = values.to_numpy()
    if isinstance(values, (list, tuple)) or getattr(getattr(values, "dtype", None), "kind", "") == "O":
        rows = [_row(value) for value in values]
        same = len({(row.shape, row.dtype.kind) for row in map(np.asarray, rows)}) == 1
        if same and not isinstance(rows[0], (str, bytes)):
            return np.stack(rows)
        return as_objects(rows)
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind in "US" else array


def as_objects(rows: Sequence[Any]) -> np.ndarray:
    """One object a row, whatever the rows are: assigned together, arrays of one shape would be stacked."""
    array = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        array[i] = row
    return array


def _row(value: Any) -> Any:
    if hasattr(value, "getbands"):  # a picture of Pillow
        return to_pixels(value, 1 if value.getbands() in (("L",), ("1",)) else 3)
    return value if isinstance(value, (str, bytes)) else np.asarray(value)


@dataclasses.dataclass(frozen=True)
class Column:
    """One key of all examples."""

    kind: str
    """class, image, sound, text or numbers."""
    values: np.ndarray
    """One row an example; of objects where these are texts or differ in shape."""
    names: tuple[str, ...] = ()
    """Of classes."""

    @classmethod
    def of(cls, key: str, values: np.ndarray, class_names: Sequence[str] | None) -> Column:
        """What `values` are, by their key and dtype.

        Raises:
          UserError: they are not what the key says.
        """
        texts = values.dtype == object and all(isinstance(value, (str, bytes)) for value in values)
        if key == "label" and (texts or (values.dtype.kind in "iub" and values.ndim == 1)):
            return _classes(values, texts, class_names)
        if key == "image" and not texts:
            return cls("image", _pixels(values))
        if key == "audio" and not texts:
            return cls("sound", as_objects([to_int16(x, f"the sound {i}") for i, x in enumerate(values)]))
        if texts:
            encoded = [value if isinstance(value, bytes) else value.encode() for value in values]
            return cls("text", np.array([*encoded, None], object)[:-1])
        if values.dtype.kind not in "iubf":
            raise UserError(
                f"{key} holds values of different shapes or kinds: give numbers of one shape, or texts"
            )
        return cls("numbers", values)

    def feature(self) -> Any:
        """The feature of TFDS."""
        import tensorflow_datasets as tfds

        if self.kind == "class":
            return tfds.features.ClassLabel(names=list(self.names))
        if self.kind == "text":
            return tfds.features.Text()
        if self.kind == "sound":
            return tfds.features.Tensor(shape=(None,), dtype=np.int16)
        shape = self.values.shape[1:]
        if self.values.dtype == object:
            shape = (None, None, self.values[0].shape[-1])
        dtype = self.example(0).dtype
        if self.kind == "image" and dtype == np.uint8 and shape[-1] in (1, 3, 4):
            return tfds.features.Image(shape=shape)
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    def example(self, index: int) -> np.ndarray:
        """One example's value."""
        value = self.values[index]
        return np.array(value, object) if self.kind == "text" else np.asarray(value)

    def update(self, total: Any) -> None:
        """Adds all values to a hash."""
        total.update(f"{self.kind} {self.names} {self.values.dtype} {self.values.shape}".encode())
        if self.values.dtype != object:
            total.update(np.ascontiguousarray(self.values).data)
            return
        for value in self.values:
            array = (
                np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.ascontiguousarray(value)
            )
            total.update(f"{array.shape} {array.dtype}".encode())
            total.update(array.data)


def _classes(values: np.ndarray, texts: bool, class_names: Sequence[str] | None) -> Column:
    """Labels as numbers of classes."""
    if texts:
        plain = [value.decode() if isinstance(value, bytes) else value for value in values]
        names = list(class_names or sorted(set(plain)))
        numbers = {name: i for i, name in enumerate(names)}
        unknown = next((i for i, name in enumerate(plain) if name not in numbers), None)
        if unknown is not None:
            raise UserError(
                f"the label of example {unknown} is {plain[unknown]!r}, which is not among class_names"
            )
        labels = np.array([numbers[name] for name in plain], np.int64)
    else:
        labels = values.astype(np.int64)
        count = len(class_names) if class_names is not None else int(labels.max()) + 1
        wrong = np.flatnonzero((labels < 0) | (labels >= count))
        if len(wrong):
            raise UserError(
                f"the label of example {wrong[0]} is {values[wrong[0]]}: there are {count} classes, 0 to {count - 1}"
            )
        names = [str(name) for name in (class_names if class_names is not None else range(count))]
    if len(set(names)) != len(names):
        raise UserError("class_names holds a name twice")
    if empty := len(names) - len(np.unique(labels)):
        log.warning("%d of the %d classes have no example", empty, len(names))
    return Column("class", labels, tuple(names))


def _pixels(values: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, C): uint8, or floats; an array of objects (H, W, C) where they differ in size."""
    if values.dtype != object:
        return _to_scale(_with_channels(values, values.ndim - 1))
    pictures = [_with_channels(value, np.ndim(value)) for value in values]
    if len({picture.shape[-1] for picture in pictures}) != 1:
        raise UserError("image holds pictures with different numbers of channels: convert them to one")
    ends = np.cumsum([picture.size for picture in pictures])
    flat = np.concatenate([picture.ravel() for picture in pictures])
    scaled = np.split(_to_scale(flat), ends[:-1])
    array = np.empty(len(pictures), object)
    array[:] = [part.reshape(picture.shape) for part, picture in zip(scaled, pictures, strict=True)]
    return array


def _with_channels(values: Any, rank: int) -> np.ndarray:
    """`values`, whose last `rank` axes are a picture, with an axis of channels."""
    values = np.asarray(values)
    if rank == 2:
        return values[..., None]
    if rank != 3 or values.dtype.kind not in "iubf":
        raise UserError(
            f"image must hold numbers (N, H, W, C) or (N, H, W), got {values.dtype} {values.shape}"
        )
    if values.shape[-3] in (1, 3) and values.shape[-1] > 4:
        raise UserError(f"image has shape {values.shape}: channels come last, as in (N, H, W, C)")
    return values


def _to_scale(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255 as uint8; floats on that scale, or on that of 0..1, as float32 of 0..1.

    What has values below 0 has no such scale: it was standardized, and is left alone.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError(
                f"image holds {'NaN' if np.isnan(low + high) else 'infinity'}: give finite numbers"
            )
        if low < 0 or high > 255 or high <= 2:
            return values.astype(np.float32)
        return (
            values.astype(np.uint8)
            if (values == np.round(values)).all()
            else (values / 255).astype(np.float32)
        )
    if low < 0 or high > 255:
        raise UserError(
            f"image holds whole numbers from {low} to {high}: give 0 to 255, or floats from 0 to 1"
        )
    return values.astype(np.uint8)


def class_column(columns: Mapping[str, Column]) -> Column | None:
    """The column of classes, if there is one."""
    return next((column for column in columns.values() if column.kind == "class"), None)
