"""An array that the exported model computes."""

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from jaxaccel.deployment.onnx.graph import Dims

_WIDENED = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the ONNX graph that stands for an array of the program.

    What the graph holds may have its axes in another order, and size 1 along axes that are only broadcast. Neither
    costs a node: transpositions and broadcasts are written where an operator needs them.
    """

    name: str
    """Of the ONNX value."""
    shape: tuple[Any, ...]
    """Of the array."""
    dtype: np.dtype
    """Of the array; the ONNX value has `dtype_in_file` of it."""
    order: tuple[int, ...]
    """Axis i of the ONNX value is axis ``order[i]`` of the array."""
    stored: tuple[Any, ...]
    """Shape of the ONNX value: that of the array in `order`, or 1 along axes that are broadcast."""
    dropped: tuple[int, ...] = ()
    """Where in the ONNX value there were axes that a reduction dropped: what is added for broadcasting goes there."""

    @property
    def ndim(self) -> int:
        """Of the array."""
        return len(self.shape)

    @property
    def in_order(self) -> bool:
        """Whether the axes of the ONNX value are those of the array."""
        return self.order == tuple(range(self.ndim))

    def astype(self, dtype: Any) -> "Tensor":
        """Rules cast by themselves; the interpreter asks for this where a rule forgot to."""
        raise AssertionError(f"{self.name} is {self.dtype}, not {dtype}")


@dataclasses.dataclass(frozen=True, eq=False)
class ComplexTensor(Tensor):
    """Complex numbers, of which the graph holds both parts. Only what takes one of them can read it."""

    parts: tuple[Tensor, ...] = ()
    """Real and imaginary."""


def dtype_in_file(dtype: Any) -> np.dtype:
    """The dtype of an array in the model: float16 and bfloat16 are computed in float32, which all engines have."""
    found = np.dtype(dtype)
    return np.dtype(np.float32) if found in _WIDENED else found


def plain(name: str, shape: Dims, dtype: Any) -> Tensor:
    """A tensor whose ONNX value is the array itself."""
    return Tensor(name, tuple(shape), np.dtype(dtype), tuple(range(len(shape))), tuple(shape))


def is_static(shape: Dims) -> bool:
    """Whether all sizes are known."""
    return all(isinstance(n, int) for n in shape)
