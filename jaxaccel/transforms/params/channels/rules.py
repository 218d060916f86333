"""Which positions each primitive keeps together: additions unite those of both operands, products those summed over.

What mixes positions in a way that has no rule, or what decides results by how many there are, fixes them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxaccel.transforms.params.channels.labels import FIXED, Axis, Label, Nodes


def _dot(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = p["dimension_numbers"]
    lhs, rhs = labels
    for a, b in zip(lhs_sum, rhs_sum, strict=True):
        _summed(lhs.axes[a], rhs.axes[b], lhs.param or rhs.param, nodes)
    batch = [nodes.unite(lhs.axes[a], rhs.axes[b]) for a, b in zip(lhs_batch, rhs_batch, strict=True)]
    free = [x for i, x in enumerate(lhs.axes) if i not in (*lhs_sum, *lhs_batch)]
    free += [x for i, x in enumerate(rhs.axes) if i not in (*rhs_sum, *rhs_batch)]
    return Label([*batch, *free])


def _summed(a: Axis, b: Axis, with_parameter: bool, nodes: Nodes) -> None:
    """Two axes that are summed over together. Between activations the number of terms may matter (1/sqrt(width))."""
    if not with_parameter or a is None or b is None:
        nodes.fix(a)
        nodes.fix(b)
    nodes.unite(a, b)


def _convolution(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    (lhs, rhs), (inputs, outputs) = labels, (numbers.lhs_spec[1], numbers.rhs_spec[:2][::-1])
    x, w_in, w_out = lhs.axes[inputs], rhs.axes[outputs[0]], rhs.axes[outputs[1]]
    for axis in numbers.rhs_spec[2:]:
        nodes.fix(rhs.axes[axis])
    if p["batch_group_count"] > 1:
        nodes.fix_all(lhs)
        nodes.fix_all(rhs)
    elif groups == 1:
        _summed(x, w_in, rhs.param, nodes)
    elif w_in is None or len(w_in) == 1:  # depthwise: each channel by itself, with all that is made of it
        nodes.fix(w_in)
        times = shape[numbers.out_spec[1]] // groups
        nodes.unite(None if x is None else np.repeat(x, times), w_out)
    else:  # whole groups could go, but not single channels of one
        nodes.fix(w_in)
        per_in, per_out = shapes[0][inputs] // groups, shape[numbers.out_spec[1]] // groups
        heads = None if w_out is None else w_out.reshape(groups, per_out)[:, 0]
        nodes.unite(None if heads is None else np.repeat(heads, per_out), w_out)
        nodes.unite(x, None if heads is None else np.repeat(heads, per_in))
    axes: list[Axis] = [None] * len(shape)
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = lhs.axes[numbers.lhs_spec[0]], w_out
    for spatial, axis in zip(numbers.out_spec[2:], numbers.lhs_spec[2:], strict=True):
        nodes.fix(lhs.axes[axis])
        axes[spatial] = np.full(shape[spatial], FIXED)
    return Label(axes)


def _broadcast(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    axes: list[Axis] = [None] * len(shape)
    kept = repeat(labels[0], shapes[0], [shape[axis] for axis in p["broadcast_dimensions"]], nodes)
    for axis, label in zip(p["broadcast_dimensions"], kept.axes, strict=True):
        axes[axis] = label
    return Label(axes, kept.param)


def repeat(label: Label, sizes: Sequence[int], shape: Sequence[int], nodes: Nodes) -> Label:
    """The label of a value of `sizes` repeated along its axes of size 1 to `shape`."""
    axes: list[Axis] = []
    for axis, size, wanted in zip(label.axes, sizes, shape, strict=True):
        if size != wanted:
            nodes.fix(axis)
        axes.append(axis if size == wanted else None)
    return Label(axes, label.param)


def _reshape(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    axes: list[Axis] = [None] * len(shape)
    for old, new in _groups(shapes[0], shape):
        flat = _merged([labels[0].axes[i] for i in old], [shapes[0][i] for i in old], nodes)
        for axis, label in zip(new, _parted(flat, [shape[i] for i in new], nodes), strict=True):
            axes[axis] = label
    return Label(axes, labels[0].param)


def _merged(axes: list[Axis], sizes: list[int], nodes: Nodes) -> Axis:
    """The label of several axes as one. Where several could lose positions, only the first may."""
    real = [i for i, axis in enumerate(axes) if axis is not None and (axis != FIXED).any()]
    if not real:
        return None if all(axis is None for axis in axes) else np.full(math.prod(sizes), FIXED)
    for i in real[1:]:
        nodes.fix(axes[i])
    place = [1] * len(sizes)
    place[real[0]] = -1
    return np.broadcast_to(np.reshape(np.asarray(axes[real[0]]), place), sizes).reshape(-1)


def _parted(flat: Axis, sizes: list[int], nodes: Nodes) -> list[Axis]:
    """The labels of the axes that one axis becomes."""
    if flat is None or len(sizes) < 2:
        return [flat] * len(sizes)
    whole = flat.reshape(sizes)
    out: list[Axis] = [np.full(n, FIXED) for n in sizes]
    for i in reversed(range(len(sizes))):  # it may have been merged of these very axes
        along = np.moveaxis(whole, i, 0).reshape(sizes[i], -1)
        if (along == along[:, :1]).all():
            out[i] = along[:, 0]
            return out
    # Neighbors that land in one row stand or fall together: the channels of a head.
    rows = whole.reshape(sizes[0], -1)
    for column in range(1, rows.shape[1]):
        nodes.unite(rows[:, 0], rows[:, column])
    out[0] = rows[:, 0]
    return out


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of `old` and of `new` that become each other, as the shortest groups of equal size; none of size 1."""
    left, right = [i for i, n in enumerate(old) if n != 1], [i for i, n in enumerate(new) if n != 1]
    groups, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        a, b = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (x := math.prod(old[k] for k in a)) != (y := math.prod(new[k] for k in b)):
            if x < y:
                a, i = [*a, left[i]], i + 1
            else:
                b, j = [*b, right[j]], j + 1
        groups.append((a, b))
    return groups


def _concatenate(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    along = p["dimension"]
    rest = nodes.united([Label([x for i, x in enumerate(label.axes) if i != along]) for label in labels]).axes
    pieces = [label.axes[along] for label in labels]
    filled = [np.full(s[along], FIXED) if x is None else x for x, s in zip(pieces, shapes, strict=True)]
    joined = None if all(x is None for x in pieces) else np.concatenate(filled)
    return Label([*rest[:along], joined, *rest[along:]])


def _pad(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    axes: list[Axis] = []
    for label, size, (low, _, inner) in zip(labels[0].axes, shape, p["padding_config"], strict=True):
        if label is None or (low == inner == 0 and size == len(label)):
            axes.append(label)
        else:
            wide = np.full(size, FIXED)
            at = low + np.arange(len(label)) * (inner + 1)
            inside = (at >= 0) & (at < size)
            wide[at[inside]] = label[inside]
            nodes.fix(label[~inside])
            axes.append(wide)
    return Label(axes)


def _slice(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    """Halves, thirds, every other one: equal parts of an axis lose equally many. Other cuts fix what they cut."""
    axes: list[Axis] = []
    strides = p["strides"] or (1,) * len(shape)
    for x, start, stop, step in zip(
        labels[0].axes, p["start_indices"], p["limit_indices"], strides, strict=True
    ):
        if x is None or (start, stop, step) == (0, len(x), 1):
            axes.append(x)
            continue
        size = len(range(start, stop, step))
        if step == 1 and size > 1 and len(x) % size == 0 and start % size == 0:
            nodes.unite_rows(x.reshape(-1, size))
        elif step > 1 and len(x) % step == 0 and size == len(x) // step:
            nodes.unite_rows(x.reshape(-1, step).T)
        else:
            nodes.fix(x)
        axes.append(x[start:stop:step])
    return Label(axes, labels[0].param)


def _squeeze(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    for axis in p["dimensions"]:
        nodes.fix(labels[0].axes[axis])
    return Label([x for i, x in enumerate(labels[0].axes) if i not in p["dimensions"]], labels[0].param)


def _whole_axes(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    """An operation that keeps its axes, and mixes or moves positions of those whose size is not in `kept`."""
    axes: list[Axis] = []
    for axis, label in enumerate(labels[0].axes):
        kept = shape[axis] == shapes[0][axis] and axis not in _mixed(p)
        if not kept:
            nodes.fix(label)
        axes.append(label if kept else np.full(shape[axis], FIXED))
    return Label(axes)


def _mixed(p: Any) -> set[int]:
    windows = {i for i, n in enumerate(p.get("window_dimensions", ())) if n > 1}
    named = {p[name] for name in ("axis", "dimension") if name in p}
    return windows | named


def _gather(p: Any, shapes: Any, shape: Any, labels: list[Label], nodes: Nodes) -> Label:
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    axes: list[Axis] = [np.full(n, FIXED) for n in shape]
    offsets = iter(numbers.offset_dims)
    for axis, label in enumerate(labels[0].axes):
        place = None if axis in gone else next(offsets)
        if place is not None and axis not in numbers.start_index_map and sizes[axis] == shapes[0][axis]:
            axes[place] = label
        else:
            nodes.fix(label)
    for label in labels[1:]:
        nodes.fix_all(label)
    return Label(axes)


RULES: dict[str, Callable[..., Label]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": lambda p, _, __, labels, ___: Label([labels[0].axes[i] for i in p["permutation"]], labels[0].param),
    "squeeze": _squeeze,
    "rev": lambda p, _, __, labels, ___: Label(
        [x if x is None or i not in p["dimensions"] else x[::-1] for i, x in enumerate(labels[0].axes)]
    ),
    "concatenate": _concatenate,
    "pad": _pad,
    "slice": _slice,
    "gather": _gather,
    "iota": lambda p, _, shape, __, ___: Label(
        [np.full(n, FIXED) if i == p["dimension"] else None for i, n in enumerate(shape)]
    ),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum", "cumsum", "cumprod", "cummax", "cummin",
         "cumlogsumexp", "dynamic_slice"), _whole_axes,
    ),
}  # fmt: skip
"""(parameters, shapes of operands, shape of the result, labels of operands, nodes) -> label of the result."""
