"""What of compressed parameters may be trained without undoing their compression."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.arrays import CodebookArray, LowRankArray
from jaxaccel.core.interpret import is_compressed

PyTree = Any


def trainable(params: PyTree) -> PyTree:
    """The floating-point arrays of `params` that an optimizer may move.

    Dense ones, codebooks, and both factors of low-rank ones, at the paths that they have (``kernel/left``); None in the
    place of integers. The result holds no compressed array, so that any optimizer takes it; `with_trained` puts it
    back.
    """

    def leaf(x: Any) -> Any:
        if isinstance(x, LowRankArray):
            return {"left": leaf(x.left), "right": leaf(x.right)}
        if isinstance(x, CodebookArray):
            return x.codebook
        return None if is_compressed(x) or not jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(leaf, params, is_leaf=is_compressed)


def with_trained(params: PyTree, trained: PyTree) -> PyTree:
    """`params` with what `trainable` took out replaced by `trained`; pruned zeros of a codebook stay zero."""

    def leaf(x: Any, new: Any) -> Any:
        if new is None:
            return x
        if isinstance(x, LowRankArray):
            return dataclasses.replace(x, left=leaf(x.left, new["left"]), right=leaf(x.right, new["right"]))
        if isinstance(x, CodebookArray):
            # The first value (of each layer) is that of pruned weights, wherever there are any.
            pruned = (jnp.arange(x.codebook.shape[-1]) == 0) & (x.codebook[..., :1] == 0)
            return CodebookArray(x.indices, jnp.where(pruned, 0.0, new), x.real)
        return new

    return jax.tree.map(leaf, params, trained, is_leaf=lambda x: x is None or is_compressed(x))
