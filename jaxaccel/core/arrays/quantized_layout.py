"""How a `QuantArray` passes through the primitives that only move numbers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.arrays.quantized import QuantArray, broadcast_scale
from jaxaccel.core.interpret import array_rule, is_compressed
from jaxaccel.core.sites import Site


@array_rule(QuantArray, "convert_element_type")
def _convert(site: Site, x: QuantArray) -> Any:
    dtype = jnp.dtype(site.params["new_dtype"])
    return dataclasses.replace(x, real=dtype.name) if jnp.issubdtype(dtype, jnp.floating) else NotImplemented


@array_rule(QuantArray, "copy", "copy_p", "pvary", "pcast", "pbroadcast")
def _leafwise(site: Site, x: QuantArray) -> QuantArray:
    return jax.tree.map(site.bind, x)


@array_rule(QuantArray, "transpose")
def _transpose(site: Site, x: QuantArray) -> QuantArray:
    return jax.tree.map(lambda leaf: jnp.transpose(leaf, site.params["permutation"]), x.unpacked())


@array_rule(QuantArray, "rev")
def _rev(site: Site, x: QuantArray) -> QuantArray:
    return jax.tree.map(lambda leaf: jax.lax.rev(leaf, site.params["dimensions"]), x.unpacked())


@array_rule(QuantArray, "squeeze")
def _squeeze(site: Site, x: QuantArray) -> QuantArray:
    return jax.tree.map(lambda leaf: jax.lax.squeeze(leaf, site.params["dimensions"]), x.unpacked())


@array_rule(QuantArray, "mul")
def _mul(site: Site, x: Any, y: Any) -> Any:
    quant, factor = (x, y) if isinstance(x, QuantArray) else (y, x)
    if is_compressed(factor) or jnp.size(factor) != 1:
        return NotImplemented
    return dataclasses.replace(quant, scale=quant.scale * jnp.reshape(factor, [1] * quant.ndim))


@array_rule(QuantArray, "broadcast_in_dim")
def _broadcast(site: Site, x: QuantArray, *_: Any) -> Any:
    shape, axes = site.params["shape"], site.params["broadcast_dimensions"]

    def wide(scale: jax.Array) -> jax.Array:
        sizes = [1] * len(shape)
        for axis, size in zip(axes, scale.shape, strict=True):
            sizes[axis] = size
        return jax.lax.broadcast_in_dim(scale, sizes, axes)

    x = x.unpacked()
    return x.with_scales(wide, qvalue=jax.lax.broadcast_in_dim(x.qvalue, shape, axes))


@array_rule(QuantArray, "slice")
def _slice(site: Site, x: QuantArray) -> Any:
    start, limit = site.params["start_indices"], site.params["limit_indices"]
    strides = site.params["strides"] or (1,) * x.ndim
    x = x.unpacked()
    cut = [a for a in range(x.ndim) if (start[a], limit[a], strides[a]) != (0, x.shape[a], 1)]
    x = x.with_scales(lambda scale: _unblocked(scale, cut, x.shape))

    def taken(leaf: jax.Array) -> jax.Array:
        return leaf[
            tuple(
                slice(None) if size == 1 and whole != 1 else slice(*bounds)
                for size, whole, bounds in zip(
                    leaf.shape, x.shape, zip(start, limit, strides, strict=True), strict=True
                )
            )
        ]

    return x.with_scales(
        lambda scale: taken(scale) if any(scale.shape[a] != 1 for a in cut) else scale, qvalue=taken(x.qvalue)
    )


@array_rule(QuantArray, "dynamic_slice")
def _dynamic_slice(site: Site, x: QuantArray, *starts: Any) -> QuantArray:
    sizes = site.params["slice_sizes"]
    x = x.unpacked()
    cut = [axis for axis in range(x.ndim) if sizes[axis] != x.shape[axis]]
    x = x.with_scales(lambda scale: _unblocked(scale, cut, x.shape))

    def taken(scale: jax.Array) -> jax.Array:
        there = [axis in cut and scale.shape[axis] != 1 for axis in range(x.ndim)]
        return jax.lax.dynamic_slice(
            scale,
            [start if t else 0 for start, t in zip(starts, there, strict=True)],
            [size if t else whole for size, whole, t in zip(sizes, scale.shape, there, strict=True)],
        )

    return x.with_scales(taken, qvalue=jax.lax.dynamic_slice(x.qvalue, starts, sizes))


@array_rule(QuantArray, "concatenate")
def _concatenate(site: Site, *arrays: Any) -> Any:
    axis = site.params["dimension"]
    if not all(isinstance(x, QuantArray) and x.zero_point is None for x in arrays):
        return NotImplemented
    shapes = [
        np.broadcast_shapes(*[[1 if a == axis else n for a, n in enumerate(x.scale.shape)]]) for x in arrays
    ]
    if len({tuple(s) for s in shapes}) > 1 or len({(x.bits, x.real) for x in arrays}) > 1:
        return NotImplemented
    scales = [broadcast_scale(x.scale, axis, x.shape[axis]) for x in arrays]
    return dataclasses.replace(
        arrays[0].unpacked(),
        qvalue=jnp.concatenate([x.integers() for x in arrays], axis),
        scale=jnp.concatenate(scales, axis),
    )


@array_rule(QuantArray, "reshape")
def _reshape(site: Site, x: QuantArray) -> Any:
    if site.params["dimensions"] is not None:
        return NotImplemented
    shape = site.params["new_sizes"]
    groups = _groups(x.shape, shape)
    if groups is None:
        return NotImplemented
    x = x.unpacked()

    def reshaped(scale: jax.Array) -> jax.Array:
        sizes: list[int] = []
        for old, new in groups:
            many = [a for a in old if x.shape[a] != 1]
            if all(scale.shape[a] == 1 for a in many):
                sizes += [1] * len(new)
            else:
                for axis in many:  # one scale for all and one for each do not mix in one axis
                    scale = broadcast_scale(scale, axis, x.shape[axis])
                sizes += [shape[a] for a in new]
        return scale.reshape(sizes)

    return x.with_scales(reshaped, qvalue=x.qvalue.reshape(shape))


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Axes of `old` and of `new` that become each other, as the shortest groups of equal size, in order."""
    if 0 in old:
        return None
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(left), j + len(right)
        a, b = math.prod(old[k] for k in left), math.prod(new[k] for k in right)
        while a != b:
            if a < b:
                left, i, a = [*left, i], i + 1, a * old[i]
            else:
                right, j, b = [*right, j], j + 1, b * new[j]
        groups.append((left, right))
    return groups


def _unblocked(scale: jax.Array, axes: list[int], shape: tuple[int, ...]) -> jax.Array:
    """Scales with those axes whole that are to be cut and have blocks."""
    for axis in axes:
        if scale.shape[axis] not in (1, shape[axis]):
            scale = broadcast_scale(scale, axis, shape[axis])
    return scale


@array_rule(QuantArray, "gather")
def _gather(site: Site, x: QuantArray, indices: Any) -> Any:
    """Rows are gathered as integers and scaled afterward: an embedding lookup reads a quarter of the bytes."""
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    whole = [a for a in range(x.ndim) if a not in numbers.start_index_map]
    if any(sizes[a] != x.shape[a] for a in whole) or numbers.operand_batching_dims or x.length is not None:
        x = x.unpacked()
        if any(sizes[a] != x.shape[a] for a in whole) or numbers.operand_batching_dims:
            return NotImplemented

    def taken(leaf: jax.Array) -> jax.Array:
        for axis in numbers.start_index_map:
            leaf = broadcast_scale(leaf, axis, x.shape[axis])
        now = tuple(leaf.shape[a] if a in whole else sizes[a] for a in range(x.ndim))
        # What lies outside is NaN where it is filled: the scale brings that, integers have none.
        fill = site.params["fill_value"] if leaf.dtype == jnp.float32 else 0
        return site.bind(leaf, indices, slice_sizes=now, fill_value=fill)

    rows = x.with_scales(taken, qvalue=taken(x.qvalue))
    return rows.materialize()
