"""Metrics as sums: added across batches, steps and devices, divided once at the end."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that is not yet divided: `total` and `count` are float32 arrays of equal shape.

    A shape other than () holds several means at once, such as one per class or per n-gram order.
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """The weighted mean of `values` (B,) with `weights` (B,); weight 0 leaves an example out."""
        weights = weights.astype(jnp.float32)
        # `where` and not a bare product: 0 * inf of a padded example would poison the sum.
        kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
        return cls((kept * weights).sum(), weights.sum())

    def value(self) -> jax.Array:
        """total / count, and 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1e-9)


Means = Mapping[str, Mean]


def add(means: Iterable[Means]) -> dict[str, Mean]:
    """The sum of several dictionaries of means with the same names.

    Raises:
      ValueError: there is none.
    """
    first, *rest = means
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), dict(first), *map(dict, rest))
