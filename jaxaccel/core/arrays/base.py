"""What the array types say of the array that they stand for."""

import abc
import math

import jax
import jax.numpy as jnp
import numpy as np


class StandIn(abc.ABC):
    """A pytree of arrays that stands for one dense array, of shape `shape` and of the dtype that `real` names."""

    real: str

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the array it stands for."""

    @property
    def dtype(self) -> np.dtype:
        """Of the array it stands for."""
        return jnp.dtype(self.real)

    @property
    def ndim(self) -> int:
        """Of the array it stands for."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements of the array it stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes itself."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))
