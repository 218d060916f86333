"""Parameters that share few values: codebooks by k-means."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.arrays import CodebookArray
from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.k_means import k_means
from jaxaccel.transforms.params.select import select_leaves

PyTree = Any


@checked
def share(
    params: PyTree, bits: int = 4, where: Where = "**/kernel", *, stacked: Where | None = None
) -> PyTree:
    """`params` with the weights that `where` selects as `CodebookArray`s of at most ``2 ** bits`` values each.

    The values are the centers of k-means (Han et al. 2016, arXiv:1510.00149, section 3), the best of several starts
    (`k_means`), so that a few large weights take no more of them than their squares are worth. Zeros, of which pruned
    weights have many, keep a value of their own, the first. The same weights give the same values. Each layer of a
    stack that a loop runs over has its own.

    Args:
      params: any pytree of arrays; leaves that are compressed already stay as they are.
      bits: 1 to 8.
      where: which leaves, by path or predicate; those with fewer than two axes stay as they are.
      stacked: which leaves hold those of several layers along their first axis; by default as for `quantize`.

    Raises:
      UserError: `bits` is out of range, `where` selects nothing, or a weight is NaN or infinite.
    """
    if not 1 <= bits <= 8:
        raise UserError(f"bits must be 1 to 8, got {bits}")
    chosen = select_leaves(params, where, at_least=2, stacked=stacked)
    return chosen.replaced(
        {
            path: (_shared_stack if chosen.stack_axes[path] else _shared)(path, x, 2**bits)
            for path, x in chosen.items()
        }
    )


def _shared_stack(path: str, x: jax.Array, count: int) -> CodebookArray:
    layers = [_shared(path, layer, count) for layer in x]
    size = max(layer.codebook.size for layer in layers)
    # Layers with fewer values have the last one again.
    books = [jnp.pad(layer.codebook, (0, size - layer.codebook.size), mode="edge") for layer in layers]
    return CodebookArray(jnp.stack([layer.indices for layer in layers]), jnp.stack(books), layers[0].real)


def _shared(path: str, x: jax.Array, count: int) -> CodebookArray:
    values = np.asarray(x, np.float32).ravel()
    if not np.isfinite(values).all():
        raise UserError(f"{path} has weights that are NaN or infinite, which share no value: train it again")
    rest = values[values != 0]
    zeros = rest.size < values.size
    centers = k_means(rest, count - zeros) if rest.size else np.zeros(0, np.float32)
    book = np.concatenate([[0.0], centers]) if zeros else centers
    indices = _nearest(values, centers) + zeros
    indices[values == 0] = 0
    return CodebookArray(
        jnp.asarray(indices.reshape(np.shape(x)), jnp.uint8),
        jnp.asarray(book, jnp.float32),
        jnp.result_type(x).name,
    )


def _nearest(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
