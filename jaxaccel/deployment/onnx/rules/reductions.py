"""Sums, maxima and the like over axes, along an axis, and over windows."""

import math
from typing import Any

import numpy as np

from jaxaccel.core.interpret import Rule
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.tensor import Tensor, is_static, plain

REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}
LOGICAL = {"reduce_and": "ReduceMin", "reduce_or": "ReduceMax"}


def make_rules(builder: Builder) -> dict[str, Rule]:
    """The rules by primitive."""
    rules: dict[str, Rule] = {}
    for name, op in {**REDUCTIONS, **LOGICAL}.items():
        rules[name] = lambda site, x, op=op: _reduce(builder, site, x, op)
    for name, op in {"argmax": "ArgMax", "argmin": "ArgMin"}.items():
        rules[name] = lambda site, x, op=op: _find(builder, site, x, op)
    return rules | {
        "cumsum": lambda site, x: _accumulate(builder, site, x),
        "reduce_window_max": lambda site, x: _pool(builder, site, x, "MaxPool"),
        "reduce_window_sum": lambda site, x: _pool(builder, site, x, "AveragePool"),
        "sort": lambda site, *xs: _sort(builder, site, xs),
        "top_k": lambda site, x: _top(builder, site, x),
    }


def _reduce(builder: Builder, site: Site, x: Tensor, op: str) -> Tensor:
    axes = site.params["axes"]
    name = builder.full(x, x.order)
    if not axes:
        return x
    places = [i for i, axis in enumerate(x.order) if axis in axes]
    wide = builder.cast(name, x.dtype, np.int32 if x.dtype == bool else x.dtype)
    # With the axes kept, and dropped behind: what brings them back for broadcasting then undoes the dropping.
    name = builder.node(op, wide, builder.integers(*places), keepdims=1)
    builder.ranks[name] = x.ndim
    terms = [x.shape[axis] for axis in axes]
    if op == "ReduceSum" and is_static(tuple(terms)):
        builder.summed[name] = math.prod(terms)
    name = builder.cast(name, np.int32 if x.dtype == bool else x.dtype, x.dtype)
    name = builder.node("Squeeze", name, builder.integers(*places))
    left = sorted(axis for axis in range(x.ndim) if axis not in axes)
    order = tuple(left.index(axis) for axis in x.order if axis not in axes)
    shape = tuple(site.output.shape)
    stored = tuple(shape[axis] for axis in order)
    return Tensor(name, shape, np.dtype(site.output.dtype), order, stored, tuple(places))


def _find(builder: Builder, site: Site, x: Tensor, op: str) -> Tensor:
    (axis,) = site.params["axes"]
    name = builder.node(op, builder.full(x), axis=axis, keepdims=0)
    return plain(builder.cast(name, np.int64, site.output.dtype), site.output.shape, site.output.dtype)


def _accumulate(builder: Builder, site: Site, x: Tensor) -> Tensor:
    axis = builder.constant(np.array(site.params["axis"], np.int64))
    name = builder.node("CumSum", builder.full(x), axis, reverse=int(site.params["reverse"]))
    return plain(name, site.output.shape, x.dtype)


def _sort(builder: Builder, site: Site, xs: Any) -> Any:
    axis = site.params["dimension"]
    if site.params["num_keys"] != 1:
        return NotImplemented
    n = site.inputs[0].shape[axis]
    count = builder.shape_vector((n,))
    values, order = builder.nodes(
        "TopK", builder.full(xs[0]), count, results=2, axis=axis, largest=0, sorted=1
    )
    out = [plain(values, site.output.shape, site.inputs[0].dtype)]
    for x, like in zip(xs[1:], site.inputs[1:], strict=True):
        out.append(
            plain(builder.node("GatherElements", builder.full(x), order, axis=axis), like.shape, like.dtype)
        )
    return out


def _top(builder: Builder, site: Site, x: Tensor) -> list[Tensor]:
    count = builder.integers(site.params["k"])
    values, indices = builder.nodes("TopK", builder.full(x), count, results=2, axis=-1, largest=1, sorted=1)
    shape = site.output.shape
    return [plain(values, shape, x.dtype), plain(builder.cast(indices, np.int64, np.int32), shape, np.int32)]


def _pool(builder: Builder, site: Site, x: Tensor, op: str) -> Any:
    """Pooling over the axes that have windows: those become the last ones, behind a batch and a channel axis."""
    p = site.params
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    moved = [a for a in range(x.ndim) if (window[a], strides[a], tuple(padding[a])) != (1, 1, (0, 0))]
    still = [a for a in range(x.ndim) if a not in moved]
    dilated = any(n != 1 for n in p["base_dilation"]) or (
        op != "MaxPool" and any(n != 1 for n in p["window_dilation"])
    )
    if not moved:
        return x
    if dilated or len(still) != 2 or not np.issubdtype(x.dtype, np.floating):
        return NotImplemented
    order = (*still, *moved)
    attributes: dict[str, Any] = {
        "kernel_shape": [window[a] for a in moved],
        "strides": [strides[a] for a in moved],
        "pads": [padding[a][side] for side in (0, 1) for a in moved],
        "dilations": [p["window_dilation"][a] for a in moved] if op == "MaxPool" else None,
        "count_include_pad": 1 if op == "AveragePool" else None,
    }
    name = builder.node(op, builder.full(x, order), **attributes)
    if op == "AveragePool":
        name = builder.node("Mul", name, builder.constant(np.float32(math.prod(window))))
    shape = tuple(site.output.shape)
    return Tensor(name, shape, np.dtype(site.output.dtype), order, tuple(shape[a] for a in order))
