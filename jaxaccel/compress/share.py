"""Parameters that share few values: codebooks by k-means."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.arrays import CodebookArray
from jaxaccel.compress.selected import selected
from jaxaccel.errors import UserError
from jaxaccel.trees import Where

PyTree = Any
ROUNDS = 100


def share(params: PyTree, bits: int = 4, where: Where = "**/kernel") -> PyTree:
    """`params` with the weights that `where` selects as `CodebookArray`s of at most ``2 ** bits`` values each.

    The values are the centres of k-means, which start evenly spaced between the smallest and the largest weight (Han et
    al. 2016, arXiv:1510.00149, section 3.2). Zeros, of which pruned weights have many, keep a value of their own, the
    first.

    Args:
      params: any pytree of arrays; leaves that are compressed already stay as they are.
      bits: 1 to 8.
      where: which leaves, by path or predicate; those with fewer than two axes stay as they are.

    Raises:
      UserError: `bits` is out of range, or `where` selects nothing.
    """
    if not 1 <= bits <= 8:
        raise UserError(f"bits must be 1 to 8, got {bits}")
    chosen = selected(params, where, at_least=2)
    return chosen.replaced({path: _shared(x, 2**bits) for path, x in chosen.items()})


def _shared(x: jax.Array, count: int) -> CodebookArray:
    values = np.asarray(x, np.float32).ravel()
    rest = values[values != 0]
    zeros = rest.size < values.size
    centres = _k_means(rest, count - zeros)
    book = np.concatenate([[0.0], centres]) if zeros else centres
    indices = _nearest(values, centres) + zeros
    indices[values == 0] = 0
    return CodebookArray(
        jnp.asarray(indices.reshape(np.shape(x)), jnp.uint8),
        jnp.asarray(book, jnp.float32),
        jnp.result_type(x).name,
    )


def _k_means(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` centres of one-dimensional values, sorted (Lloyd 1982)."""
    if values.size == 0:
        return np.zeros(max(count, 1), np.float32)[: max(count, 1)]
    unique = np.unique(values)
    if unique.size <= count:
        return unique
    ordered = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], count)
    for _ in range(ROUNDS):
        # In one dimension clusters are intervals, whose sums are differences of one cumulative sum.
        cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], cuts, [ordered.size]])
        sizes = np.diff(edges)
        means = np.divide(np.diff(sums[edges]), sizes, out=centres.copy(), where=sizes > 0)
        if np.allclose(means, centres, rtol=1e-7, atol=0):
            break
        centres = np.sort(means)
    return centres.astype(np.float32)


def _nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
