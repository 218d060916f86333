"""Primitives that take elements by their indices, or put some in their place."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxaccel.core.arrays import LowRankArray, QuantArray
from jaxaccel.core.interpret import Rule
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.rules.shapes import cut
from jaxaccel.deployment.onnx.tensor import Tensor, is_static, plain


def make_rules(builder: Builder) -> dict[str, Rule]:
    """The rules by primitive."""

    def gather(site: Site, x: Any, indices: Any) -> Any:
        if isinstance(x, LowRankArray):
            return NotImplemented
        x = x.materialize() if isinstance(x, QuantArray) else x
        for form in (_constant_window, _grid, _rows, _along_axis, _points):
            out = form(builder, site, x, indices)
            if out is not NotImplemented:
                return out
        return NotImplemented

    return {
        "dynamic_slice": lambda site, x, *starts: _dynamic_slice(builder, site, x, starts),
        "dynamic_update_slice": lambda site, x, part, *starts: _update(builder, site, x, part, starts),
        "gather": gather,
    }


def _constant_window(builder: Builder, site: Site, x: Any, indices: Any) -> Any:
    """One window at a place that is known: a slice."""
    value = builder.value(indices)
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    if value is None or value.ndim != 1 or numbers.operand_batching_dims or not isinstance(x, Tensor):
        return NotImplemented
    start = [0] * x.ndim
    for axis, index in zip(numbers.start_index_map, value, strict=True):
        start[axis] = int(np.clip(index, 0, x.shape[axis] - sizes[axis]))
    limit = [s + n for s, n in zip(start, sizes, strict=True)]
    part = cut(builder, x, start, limit, (1,) * x.ndim, tuple(sizes))
    gone = numbers.collapsed_slice_dims
    places = [i for i, axis in enumerate(part.order) if axis in gone]
    name = builder.node("Squeeze", part.name, builder.integers(*places)) if places else part.name
    left = [axis for axis in range(x.ndim) if axis not in gone]
    order = tuple(left.index(axis) for axis in part.order if axis not in gone)
    stored = tuple(n for axis, n in zip(part.order, part.stored, strict=True) if axis not in gone)
    return Tensor(name, tuple(site.output.shape), part.dtype, order, stored)


def _grid(builder: Builder, site: Site, x: Any, indices: Any) -> Any:
    """Every so many elements along some axes, at places that are known: a slice with steps."""
    value, numbers = builder.value(indices), site.params["dimension_numbers"]
    mapped = tuple(numbers.start_index_map)
    if value is None or not isinstance(x, Tensor) or numbers.operand_batching_dims:
        return NotImplemented
    if tuple(numbers.collapsed_slice_dims) != mapped:
        return NotImplemented
    start, limit, steps, shape = [0] * x.ndim, list(x.shape), [1] * x.ndim, list(x.shape)
    along: dict[int, int] = {}  # by axis: that of the indices along which its index varies
    for k, axis in enumerate(mapped):
        varies = [a for a in range(value.ndim - 1) if np.ptp(value[..., k], axis=a).any()]
        line = np.moveaxis(value[..., k], varies[0], 0).reshape(value.shape[varies[0]], -1)[:, 0] if varies else (
            value[..., k].reshape(-1)[:1])  # fmt: skip
        by = np.diff(line)
        if len(varies) > 1 or (by <= 0).any() or len({*by.tolist()}) > 1:
            return NotImplemented
        along |= dict.fromkeys([axis] if varies else [], varies[0] if varies else 0)
        start[axis], limit[axis], shape[axis] = int(line[0]), int(line[-1]) + 1, len(line)
        steps[axis] = int(by[0]) if len(by) else 1
    if [*along.values()] != [*range(value.ndim - 1)]:
        return NotImplemented
    if any(n != shape[a] for a, n in enumerate(site.params["slice_sizes"]) if a not in mapped):
        return NotImplemented
    part = cut(builder, x, start, limit, steps, shape)
    rest = iter(numbers.offset_dims)
    lead = iter(a for a in range(len(site.output.shape)) if a not in numbers.offset_dims)
    place = {
        a: next(lead) if a in along else next(rest) for a in range(x.ndim) if a in along or a not in mapped
    }
    gone = [i for i, a in enumerate(part.order) if a not in place]
    name = builder.node("Squeeze", part.name, builder.integers(*gone)) if gone else part.name
    order = tuple(place[a] for a in part.order if a in place)
    stored = tuple(n for i, n in enumerate(part.stored) if i not in gone)
    return Tensor(name, tuple(site.output.shape), part.dtype, order, stored)


def _indices(builder: Builder, indices: Any) -> str:
    """Index vectors (..., k) as int64."""
    tensor = builder.tensor(indices)
    return builder.cast(builder.full(tensor), tensor.dtype, np.int64)


def _bounded(builder: Builder, site: Site, name: str, limit: Any) -> str:
    """Indices that the program clips, between 0 and `limit`; others are within bounds, as it promises."""
    if site.params["mode"] != jax.lax.GatherScatterMode.CLIP:
        return name
    zero = builder.constant(np.array(0, np.int64))
    top = builder.constant(np.array(limit, np.int64)) if isinstance(limit, int) else builder.node(
        "Squeeze", builder.dimension(limit), builder.integers(0))  # fmt: skip
    return builder.node("Min", builder.node("Max", name, zero), top)


def _rows(builder: Builder, site: Site, x: Any, indices: Any) -> Any:
    """Whole rows along one axis, as of an embedding."""
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    shape = site.inputs[0].shape
    if len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return NotImplemented
    (axis,) = numbers.start_index_map
    whole = all(n == shape[a] for a, n in enumerate(sizes) if a != axis)
    if tuple(numbers.collapsed_slice_dims) != (axis,) or not whole:
        return NotImplemented
    leading = len(site.inputs[1].shape) - 1
    chosen = builder.node("Squeeze", _indices(builder, indices), builder.integers(leading))
    chosen = _bounded(builder, site, chosen, shape[axis] - 1)
    name = builder.node("Gather", builder.full(x), chosen, axis=axis)
    # ONNX puts the axes of the indices where the axis was; the program may have them elsewhere.
    out = len(site.output.shape)
    rest = iter(numbers.offset_dims)
    lead = iter(a for a in range(out) if a not in numbers.offset_dims)
    order = [next(rest) for _ in range(axis)] + [next(lead) for _ in range(leading)]
    order += list(rest)
    return Tensor(name, tuple(site.output.shape), np.dtype(site.output.dtype), tuple(order),
                  tuple(site.output.shape[a] for a in order))  # fmt: skip


def _along_axis(builder: Builder, site: Site, x: Any, indices: Any) -> Any:
    """`jnp.take_along_axis`: all axes but one are batch axes, of which each has its own indices."""
    numbers, shape = site.params["dimension_numbers"], site.inputs[0].shape
    batching = tuple(numbers.operand_batching_dims)
    if not batching or numbers.offset_dims or len(numbers.start_index_map) != 1:
        return NotImplemented
    (axis,) = numbers.start_index_map
    plain_order = batching == tuple(a for a in range(len(shape)) if a != axis)
    same = tuple(numbers.start_indices_batching_dims) == batching
    if not plain_order or not same or len(site.inputs[1].shape) != len(shape) + 1:
        return NotImplemented
    chosen = builder.node("Squeeze", _indices(builder, indices), builder.integers(len(shape)))
    chosen = _bounded(builder, site, chosen, shape[axis] - 1)
    name = builder.node("GatherElements", builder.full(x), chosen, axis=axis)
    return plain(name, site.output.shape, site.output.dtype)


def _points(builder: Builder, site: Site, x: Any, indices: Any) -> Any:
    """Elements, or whole trailing parts, at several indices each: GatherND."""
    numbers, sizes, shape = site.params["dimension_numbers"], site.params["slice_sizes"], site.inputs[0].shape
    mapped = tuple(numbers.start_index_map)
    leading = mapped == tuple(range(len(mapped))) and tuple(numbers.collapsed_slice_dims) == mapped
    whole = all(n == shape[a] for a, n in enumerate(sizes) if a not in mapped)
    lead = len(site.inputs[1].shape) - 1
    behind = tuple(numbers.offset_dims) == tuple(range(lead, len(site.output.shape)))
    if not (leading and whole and behind) or numbers.operand_batching_dims:
        return NotImplemented
    limits = [shape[a] - 1 for a in mapped]
    chosen = _indices(builder, indices)
    if is_static(limits) and site.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        chosen = builder.node("Min", builder.node("Max", chosen, builder.constant(np.array(0, np.int64))),
                              builder.integers(*limits))  # fmt: skip
    return plain(builder.node("GatherND", builder.full(x), chosen), site.output.shape, site.output.dtype)


def _starts(builder: Builder, starts: Sequence[Any], axes: Sequence[int], limits: Sequence[Any]) -> str:
    """Where a window starts along `axes`, int64 (axes,), moved so that it is within the array."""
    parts = []
    for axis in axes:
        tensor = builder.tensor(starts[axis])
        name = builder.cast(builder.full(tensor), tensor.dtype, np.int64)
        parts.append(builder.node("Unsqueeze", name, builder.integers(0)))
    joined = parts[0] if len(parts) == 1 else builder.node("Concat", *parts, axis=0)
    bounded = builder.node("Max", joined, builder.integers(*[0] * len(axes)))
    return builder.node("Min", bounded, builder.shape_vector([limits[a] for a in axes]))


def _dynamic_slice(builder: Builder, site: Site, x: Any, starts: Sequence[Any]) -> Any:
    shape, sizes = site.inputs[0].shape, site.params["slice_sizes"]
    starts = starts[: len(shape)]
    axes = [a for a, n in enumerate(sizes) if n != shape[a]]
    if not axes:
        return x
    first = _starts(builder, starts, axes, [n - m for n, m in zip(shape, sizes, strict=True)])
    last = builder.node("Add", first, builder.shape_vector([sizes[a] for a in axes]))
    name = builder.node("Slice", builder.full(x), first, last, builder.integers(*axes))
    return plain(name, site.output.shape, site.output.dtype)


def _update(builder: Builder, site: Site, x: Any, part: Any, starts: Sequence[Any]) -> Any:
    shape, sizes = site.inputs[0].shape, site.inputs[1].shape
    axes = [a for a, n in enumerate(sizes) if n != shape[a]]
    if not axes:
        return part
    if len(axes) != 1:
        return NotImplemented
    (axis,) = axes
    # The array before the part, the part, and the array behind it.
    first = _starts(builder, starts, axes, [n - m for n, m in zip(shape, sizes, strict=True)])
    last = builder.node("Add", first, builder.shape_vector([sizes[axis]]))
    where, whole = builder.integers(axis), builder.full(x)
    before = builder.node("Slice", whole, builder.integers(0), first, where)
    behind = builder.node("Slice", whole, last, builder.integers(np.iinfo(np.int64).max), where)
    name = builder.node("Concat", before, builder.full(part), behind, axis=axis)
    return plain(name, site.output.shape, site.output.dtype)
