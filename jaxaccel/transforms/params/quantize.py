"""Parameters as integers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.arrays import QuantArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where, parameter_path
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.select import check_selects_parameters, is_opaque, selects_parameter
from jaxaccel.transforms.params.stacked import count_stack_axes

PyTree = Any
Axes = int | Sequence[int] | Callable[[str, tuple[int, ...]], Sequence[int]]

MSE_SHARES = tuple(1 - 0.02 * i for i in range(31))
"""Shares of the largest magnitude that `range="mse"` tries: 1.0 down to 0.4."""


@checked
def quantize(
    params: PyTree,
    where: Where = "**/{kernel,embedding}",
    *,
    bits: int = 8,
    channels: Axes | None = None,
    block: int | None = None,
    symmetric: bool = True,
    range: str = "absmax",
    stacked: Where | None = None,
) -> PyTree:
    """`params` with the leaves that `where` selects as `QuantArray`s.

    Per output channel, symmetric and by the largest magnitude unless said otherwise, which needs no data and, for
    8 bits, costs most networks next to nothing (Wu et al. 2020, arXiv:2004.09602, section 4).

    Args:
      params: any pytree of arrays. Leaves that are compressed already stay as they are, but for the factors of a
        `LowRankArray`, which are selected with the weight that they stand for.
      where: which leaves, by path (see `jaxaccel.core.paths.matches`) or predicate. They need a floating dtype and at
        least two axes; others that it selects stay as they are.
      bits: 8, or 4, which is stored two to a byte.
      channels: axes along which each index has a scale of its own; ``()`` is one scale for the whole array. By default
        the last axis, where Flax has the output features, and the first one of a leaf named ``embedding``. May be a
        function of (path, shape). Of a stacked leaf they are those of one layer, whose shape lacks the first axis.
      block: so many consecutive values along the last axis that is not in `channels` (the input features) share a
        scale; 32 is usual with 4 bits.
      symmetric: False gives each scale a zero point, for weights that lie to one side of 0, which stays in the range:
        all integers then count from it to the largest magnitude.
      range: ``absmax``, or ``mse`` to clip where the squared error is least.
      stacked: which leaves hold those of several layers along their first axis, for a loop over it: each layer is
        quantized as if it stood alone. By default those that `find_stacked` finds: below ``stacked`` (our
        ``scan=True``), below ``ScanX_0`` (Linen's ``nn.scan``), and in modules whose biases and norms have an axis in
        front. ``()`` is none.

    Raises:
      UserError: `where` selects no leaf that can be quantized, or `bits`, `block` or `range` cannot be.
    """
    if bits not in (4, 8):
        raise UserError(f"bits must be 8 or 4, got {bits}")
    if range not in ("absmax", "mse"):
        raise UserError(f"range must be absmax or mse, got {range!r}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_opaque)
    paths = [parameter_path(path) for path, _ in leaves]
    able = _stack_axes(dict(zip(paths, (x for _, x in leaves), strict=True)), stacked)
    compressed = [path for path, (_, x) in zip(paths, leaves, strict=True) if is_compressed(x)]
    check_selects_parameters(where, (*able, *compressed))

    def one(path: str, x: Any) -> Any:
        if path not in able or not selects_parameter(where, path):
            return x
        axes = _channels(channels, path, x.shape, able[path])
        size = x.shape[_block_axis(axes, x.ndim)]
        if block is not None and size % block:
            raise UserError(f"{path} has {size} input features, which block={block} does not divide")
        out = _quantized(x, axes, bits, block, symmetric, range)
        return out.packed() if bits == 4 else out

    return jax.tree.unflatten(treedef, [one(path, x) for path, (_, x) in zip(paths, leaves, strict=True)])


def can_quantize(params: PyTree, where: Where, stacked: Where | None = None) -> bool:
    """Whether `where` selects a leaf that `quantize` makes integers of."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_opaque)
    able = _stack_axes({parameter_path(path): x for path, x in leaves}, stacked)
    return any(selects_parameter(where, path) for path in able)


def dequantize(params: PyTree) -> PyTree:
    """`params` with every compressed leaf as the dense array that it stands for."""
    return jax.tree.map(lambda x: x.materialize() if is_compressed(x) else x, params, is_leaf=is_compressed)


def _stack_axes(leaves: Mapping[str, Any], stacked: Where | None) -> dict[str, int]:
    """Of the leaves that can be integers, by path, how many axes lie in front of those of one layer."""
    floats = {path: tuple(x.shape) for path, x in leaves.items() if _is_float(x)}
    axes = count_stack_axes(floats, stacked)
    return {path: n for path, n in axes.items() if len(floats[path]) - n >= 2 and 0 not in floats[path]}


def _is_float(x: Any) -> bool:
    return not is_compressed(x) and hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _channels(channels: Axes | None, path: str, shape: tuple[int, ...], lead: int) -> set[int]:
    """Axes with scales of their own: the first `lead`, and those of one layer."""
    layer = shape[lead:]
    if channels is None:
        channels = 0 if path.rsplit("/", 1)[-1] == "embedding" else -1
    axes = channels(path, layer) if callable(channels) else channels
    axes = (axes,) if isinstance(axes, int) else axes
    return {*range(lead), *(axis % len(layer) + lead for axis in axes)}


def _block_axis(channels: set[int], ndim: int) -> int:
    """The last axis without scales of its own."""
    return max(set(range(ndim)) - channels, default=-1)


def _quantized(
    x: jax.Array, channels: set[int], bits: int, block: int | None, symmetric: bool, by: str
) -> QuantArray:
    shape, shared = x.shape, [axis for axis in range(x.ndim) if axis not in channels]
    axis = _block_axis(channels, x.ndim)
    x = jnp.asarray(x)
    real = x.dtype.name
    x = x.astype(jnp.float32)
    if block is not None:
        x = x.reshape(*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
        shared = [a if a < axis else a + 1 for a in shared if a != axis] + [axis + 1]

    def scales(values: jax.Array) -> jax.Array:
        return values.squeeze(axis + 1) if block is not None else values

    zero = None
    if symmetric:
        scale = numerics.scale_of(numerics.absmax(x, shared), bits)
    else:
        # Zero belongs to the range, so that its integer is one of those there are, and it stays exact (Jacob et al.
        # 2018, arXiv:1712.05877, section 2.1).
        low, high = jnp.min(x, shared, keepdims=True, initial=0), jnp.max(x, shared, keepdims=True, initial=0)
        least = -numerics.qmax(bits) - 1
        scale = jnp.maximum((high - low) / (2**bits - 1), numerics.TINY)
        zero = least + jnp.round(-low / scale)
    if by == "mse":
        scale = _least_error(x, scale, zero, shared, bits)
    q = _integers(x, scale, zero, bits).reshape(shape)
    return QuantArray(q, scales(scale), None if zero is None else scales(zero).astype(jnp.int8), bits, real)


def _integers(x: jax.Array, scale: jax.Array, zero: jax.Array | None, bits: int) -> jax.Array:
    if zero is None:
        return numerics.to_integers(x, scale, bits)
    top = numerics.qmax(bits)
    return jnp.clip(jnp.round(x / scale) + zero, -top - 1, top).astype(jnp.int8)


def _least_error(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, shared: list[int], bits: int
) -> jax.Array:
    """The scale, among shares of the largest, at which the sum of squared errors over `shared` is least.

    Both ends of the range come nearer to 0 by the same share, so that the zero point stays.
    """

    def error(share: jax.Array) -> jax.Array:
        # In units of the scale, since squares of small weights would vanish.
        q = _integers(x, scale * share, zero, bits).astype(jnp.float32)
        tried = (q if zero is None else q - zero) * share
        return jnp.sum((tried - x * (1 / scale)) ** 2, axis=tuple(shared), keepdims=True)

    shares = jnp.asarray(MSE_SHARES, jnp.float32)
    errors = jax.lax.map(error, shares)
    return scale * shares[jnp.argmin(errors, axis=0)]
