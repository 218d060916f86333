"""From what a person has at hand to batches of a task: named arrays, or one array where the model reads one."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxaccel.errors import UserError

Arrays = dict[str, Any]
Example = Mapping[str, jax.ShapeDtypeStruct]
"""Shape and dtype of each array of one example, without a batch axis."""
BOOKKEEPING = {"index": np.int32, "epoch": np.int32, "mask": np.float32}
"""What every batch has besides the arrays of its task, one number an example."""


class Given(NamedTuple):
    """Examples that somebody gave, on the host."""

    batches: Iterator[Arrays]
    """Arrays with a batch axis, of one example at least."""
    single: bool
    """Whether it was one example without a batch axis."""


def find_sole_input(inputs: Any, example: Example) -> str | None:
    """The array that a task's function `inputs` reads of a batch; None where it reads several."""
    read: set[str] = set()
    jax.eval_shape(lambda batch: inputs(_Recorded(batch, read)), batch_shapes(example, 1))
    return next(iter(read)) if len(read) == 1 else None


def batch_shapes(example: Example, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `size` such examples."""
    own = {name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for name, x in example.items()}
    return own | {name: jax.ShapeDtypeStruct((size,), dtype) for name, dtype in BOOKKEEPING.items()}


def split_arrays(given: Mapping[str, Any], example: Example, size: int) -> Given:
    """Named arrays, of one example or of many, as batches of up to `size`.

    Raises:
      UserError: an array has another name, shape or kind of number than the task's examples.
    """
    known = dict(example) | {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in BOOKKEEPING.items()}
    if odd := given.keys() - known.keys():
        raise UserError(f"the task's examples have {', '.join(example)}, and no {min(odd)}")
    arrays = {name: _fitting(name, value, known[name]) for name, value in given.items()}
    lengths = {len(array) if array.ndim > len(known[name].shape) else None for name, array in arrays.items()}
    if len(lengths) != 1:
        told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise UserError(f"give as many examples of each array, got {told or 'no array'}")
    count = lengths.pop()
    if count is None:
        return Given(iter([{name: array[None] for name, array in arrays.items()}]), single=True)
    starts = range(0, count, size)
    return Given(({name: x[i : i + size] for name, x in arrays.items()} for i in starts), single=False)


def _fitting(name: str, value: Any, example: jax.ShapeDtypeStruct) -> np.ndarray:
    """`value` as an array of the example's dtype, with or without a batch axis."""
    try:
        array = np.asarray(value)
        converted = array.astype(example.dtype)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be an array of {example.dtype}: {error}") from error
    shape = tuple(example.shape)
    if array.shape != shape and array.shape[1:] != shape:
        raise UserError(f"{name} must have the shape (examples, {_inner(shape)}), got {array.shape}")
    if not np.issubdtype(example.dtype, np.inexact) and not np.array_equal(converted, array):
        raise UserError(f"{name} must hold numbers of {example.dtype}, which {array.dtype} does not fit")
    return converted


def _inner(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


class _Recorded(Mapping[str, Any]):
    """A batch that notes which of its arrays are read."""

    def __init__(self, batch: Mapping[str, Any], read: set[str]) -> None:
        self._batch, self._read = batch, read

    def __getitem__(self, name: str) -> Any:
        value = self._batch[name]
        if name not in BOOKKEEPING:
            self._read.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)
