"""Primitives that move numbers: what shape they have, and where they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxaccel.core.interpret import Rule
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.graph import Dims
from jaxaccel.deployment.onnx.tensor import Tensor, plain

END = np.iinfo(np.int64).max
"""Where a slice ends that takes all that is left."""


def make_rules(builder: Builder) -> dict[str, Rule]:
    """The rules by primitive."""

    def reshape(site: Site, x: Any, *_: Any) -> Tensor:
        shape = site.params["new_sizes"]
        return _reshape(builder, builder.tensor(x), tuple(shape))

    def squeeze(site: Site, x: Any) -> Tensor:
        return _reshape(builder, builder.tensor(x), tuple(site.output.shape))

    def broadcast(site: Site, x: Any, *_: Any) -> Tensor:
        return _broadcast(
            builder, x, tuple(site.output.shape), site.params["broadcast_dimensions"], site.output.dtype
        )

    def transpose(site: Site, x: Tensor) -> Tensor:
        moved = [site.params["permutation"].index(axis) for axis in x.order]
        return Tensor(x.name, tuple(site.output.shape), x.dtype, tuple(moved), x.stored)

    def iota(site: Site, *_: Any) -> Tensor:
        shape, axis = tuple(site.output.shape), site.params["dimension"]
        n = builder.node("Squeeze", builder.dimension(shape[axis]), builder.integers(0)) if not isinstance(
            shape[axis], int) else builder.constant(np.array(shape[axis], np.int64))  # fmt: skip
        row = builder.node(
            "Range", builder.constant(np.array(0, np.int64)), n, builder.constant(np.array(1, np.int64))
        )
        line = plain(builder.cast(row, np.int64, site.output.dtype), (shape[axis],), site.output.dtype)
        return _broadcast(builder, line, shape, (axis,), site.output.dtype)

    def size(site: Site) -> Tensor:
        name = builder.node("Squeeze", builder.dimension(site.params["dim"]), builder.integers(0))
        return plain(builder.cast(name, np.int64, site.output.dtype), (), site.output.dtype)

    return {
        "broadcast_in_dim": broadcast,
        "dim_as_value": size,
        "concatenate": lambda site, *xs: _concatenate(builder, site, xs),
        "expand_dims": squeeze,
        "iota": iota,
        "pad": lambda site, x, value: _pad(builder, site, x, value),
        "reshape": reshape,
        "rev": lambda site, x: _reverse(builder, site, x),
        "slice": lambda site, x: _slice(builder, site, x),
        "split": lambda site, x: _split(builder, site, x),
        "squeeze": squeeze,
        "stack": lambda site, *xs: _stack(builder, site, xs),
        "unstack": lambda site, x: _unstack(builder, site, x),
        "tile": lambda site, x: plain(
            builder.node("Tile", builder.full(x), builder.integers(*site.params["reps"])),
            site.output.shape, x.dtype,
        ),
        "transpose": transpose,
    }  # fmt: skip


def _reshape(builder: Builder, x: Tensor, shape: Dims) -> Tensor:
    units = _match_units(x.shape, shape)
    if units is None:
        return plain(builder.reshaped(builder.full(x), shape), shape, x.dtype)
    # Only axes of size 1 come and go: what is stored keeps its order, and its broadcast axes.
    gone, new = units
    name = x.name
    axes = [i for i, axis in enumerate(x.order) if axis in gone]
    if axes:
        name = builder.node("Squeeze", name, builder.integers(*axes))
    kept = [axis for axis in x.order if axis not in gone]
    left = [axis for axis in range(x.ndim) if axis not in gone]
    targets = [axis for axis in range(len(shape)) if axis not in new]
    place = dict(zip(left, targets, strict=True))
    order, stored = [place[axis] for axis in kept], [n for i, n in enumerate(x.stored) if i not in axes]
    dropped = () if gone else x.dropped
    return _with_units(builder, name, order, stored, new, shape, x.dtype, dropped)


def _with_units(
    builder: Builder, name: str, order: Sequence[int], stored: Sequence[Any], new: Sequence[int], shape: Dims,
    dtype: Any, dropped: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """A stored value with further axes of size 1 where the array has the axes `new`."""
    order, stored = list(order), list(stored)
    if not new:
        return Tensor(name, tuple(shape), np.dtype(dtype), tuple(order), tuple(stored))
    back = dict(zip(sorted(new), sorted(dropped), strict=True)) if len(dropped) == len(new) else {}
    for axis in sorted(new):  # beside the axis before it, so that an array in order stays so
        where = back.get(axis, order.index(axis - 1) + 1 if axis - 1 in order else 0)
        order.insert(where, axis)
        stored.insert(where, 1)
    axes = [order.index(axis) for axis in sorted(new)]
    name = builder.node("Unsqueeze", name, builder.integers(*sorted(axes)))
    return Tensor(name, tuple(shape), np.dtype(dtype), tuple(order), tuple(stored))


def _match_units(old: Dims, new: Dims) -> tuple[list[int], list[int]] | None:
    """(axes of `old` that vanish, axes of `new` that appear), all of size 1; None where more happens."""
    gone, added = [], []
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            i, j = i + 1, j + 1
        elif j < len(new) and new[j] == 1:
            added.append(j)
            j += 1
        elif i < len(old) and old[i] == 1:
            gone.append(i)
            i += 1
        else:
            return None
    return gone, added


def _broadcast(builder: Builder, x: Any, shape: Dims, axes: Sequence[int], dtype: Any) -> Tensor:
    new = [axis for axis in range(len(shape)) if axis not in axes]
    value = None if isinstance(x, Tensor) else np.asarray(x)
    if value is not None:
        sizes = [1] * len(shape)
        for axis, n in zip(axes, value.shape, strict=True):
            sizes[axis] = n
        return builder.stretched(value.reshape(sizes), shape, dtype)
    return _with_units(
        builder, x.name, [axes[axis] for axis in x.order], x.stored, new, shape, dtype, x.dropped
    )


def _concatenate(builder: Builder, site: Site, xs: Sequence[Any]) -> Tensor:
    axis = site.params["dimension"]
    order = next((x.order for x in xs if isinstance(x, Tensor) and x.name not in builder.constants), None)
    order = order or tuple(range(len(site.output.shape)))
    names = [builder.full(x, order) for x in xs]
    name = names[0] if len(names) == 1 else builder.node("Concat", *names, axis=order.index(axis))
    return _like(site, name, order)


def _stack(builder: Builder, site: Site, xs: Sequence[Any]) -> Tensor:
    axis = builder.integers(site.params["axis"])
    names = [builder.node("Unsqueeze", builder.full(x), axis) for x in xs]
    return plain(
        builder.node("Concat", *names, axis=site.params["axis"]), site.output.shape, site.output.dtype
    )


def _unstack(builder: Builder, site: Site, x: Tensor) -> list[Tensor]:
    axis, whole = site.params["axis"], builder.full(x)
    rows = [builder.constant(np.array(k, np.int64)) for k in range(x.shape[axis])]
    return [plain(builder.node("Gather", whole, k, axis=axis), site.output.shape, x.dtype) for k in rows]


def _like(site: Site, name: str, order: Sequence[int]) -> Tensor:
    shape = tuple(site.output.shape)
    return Tensor(
        name, shape, np.dtype(site.output.dtype), tuple(order), tuple(shape[axis] for axis in order)
    )


def _pad(builder: Builder, site: Site, x: Any, value: Any) -> Any:
    config = site.params["padding_config"]
    if any(inside for _, _, inside in config) or not isinstance(x, Tensor):
        return NotImplemented
    cut = [(max(-low, 0), max(-high, 0)) for low, high, _ in config]
    name = builder.full(x, x.order)
    axes = [i for i, axis in enumerate(x.order) if any(cut[axis])]
    if axes:
        starts = builder.integers(*[cut[x.order[i]][0] for i in axes])
        ends = builder.integers(*[-cut[x.order[i]][1] or END for i in axes])
        name = builder.node("Slice", name, starts, ends, builder.integers(*axes))
    low, high = ([max(config[axis][side], 0) for axis in x.order] for side in (0, 1))
    if any(low) or any(high):
        name = builder.node("Pad", name, builder.integers(*low, *high), builder.tensor(value).name)
    return _like(site, name, x.order)


def _slice(builder: Builder, site: Site, x: Tensor) -> Tensor:
    start, limit = site.params["start_indices"], site.params["limit_indices"]
    steps = site.params["strides"] or (1,) * x.ndim
    return cut(builder, x, start, limit, steps, tuple(site.output.shape))


def cut(
    builder: Builder, x: Tensor, start: Sequence[Any], limit: Sequence[Any], steps: Sequence[int], shape: Dims
) -> Tensor:
    """Every so many elements of `x` from `start` to `limit`, along each axis; axes that are broadcast stay so."""
    stored = list(x.stored)
    axes, bounds = [], []
    for i, axis in enumerate(x.order):
        whole = start[axis] == 0 and limit[axis] == x.shape[axis] and steps[axis] == 1
        if not whole and not (x.stored[i] == 1 and x.shape[axis] != 1):
            axes.append(i)
            end = END if limit[axis] == x.shape[axis] else limit[axis]
            bounds.append((start[axis], end, steps[axis]))
        if not (x.stored[i] == 1 and x.shape[axis] != 1):
            stored[i] = shape[axis]
    name = x.name
    if axes:
        starts, ends = (builder.shape_vector(part) for part in tuple(zip(*bounds, strict=True))[:2])
        by = builder.integers(*[step for _, _, step in bounds])
        name = builder.node("Slice", name, starts, ends, builder.integers(*axes), by)
    return Tensor(name, tuple(shape), x.dtype, x.order, tuple(stored))


def _split(builder: Builder, site: Site, x: Tensor) -> list[Tensor]:
    axis, begin, parts = site.params["axis"], 0, []
    for size in site.params["sizes"]:
        start = [begin if a == axis else 0 for a in range(x.ndim)]
        limit = [begin + size if a == axis else n for a, n in enumerate(x.shape)]
        shape = tuple(size if a == axis else n for a, n in enumerate(x.shape))
        parts.append(cut(builder, x, start, limit, (1,) * x.ndim, shape))
        begin += size
    return parts


def _reverse(builder: Builder, site: Site, x: Tensor) -> Tensor:
    axes = [i for i, axis in enumerate(x.order) if axis in site.params["dimensions"] and x.stored[i] != 1]
    if not axes:
        return x
    each = [builder.integers(*[value] * len(axes)) for value in (-1, -END, -1)]
    name = builder.node("Slice", x.name, each[0], each[1], builder.integers(*axes), each[2])
    return Tensor(name, x.shape, x.dtype, x.order, x.stored)
