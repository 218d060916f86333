"""Matrix products and convolutions of floats; `integers` has those of quantized weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxaccel.core.arrays import LowRankArray, QuantArray
from jaxaccel.core.interpret import Rule
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder, Written, count
from jaxaccel.deployment.onnx.rules.integers import Integers
from jaxaccel.deployment.onnx.tensor import Tensor, is_static


def make_rules(builder: Builder, integers: Integers) -> dict[str, Rule]:
    """The rules by primitive."""

    def rule(site: Site, lhs: Any, rhs: Any) -> Any:
        if any(isinstance(x, LowRankArray) for x in (lhs, rhs)):
            return NotImplemented
        write = {"dot_general": multiply, "conv_general_dilated": convolve}[site.primitive]
        if any(isinstance(x, QuantArray) for x in (lhs, rhs)):
            return integers.product(site, lhs, rhs, write)
        return write(builder, site, lhs, rhs)

    return dict.fromkeys(("dot_general", "conv_general_dilated"), rule)


def convolve(builder: Builder, site: Site, x: Any, w: Any, op: str = "Conv", *more: str) -> Any:
    """Writes a convolution as ONNX has it, with channels behind the batch; `more` are operands of `op`."""
    p = site.params
    numbers = p["dimension_numbers"]
    if any(n != 1 for n in p["lhs_dilation"]) or p["batch_group_count"] != 1:
        return NotImplemented
    if any(n < 0 for pair in p["padding"] for n in pair):
        return NotImplemented
    window = site.inputs[1].shape
    name = builder.node(
        op,
        builder.full(x, numbers.lhs_spec),
        builder.full(w, numbers.rhs_spec),
        *more,
        kernel_shape=[window[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(p["window_strides"]),
        pads=[pair[side] for side in (0, 1) for pair in p["padding"]],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    shape = tuple(site.output.shape)
    return Tensor(
        name, shape, np.dtype(site.output.dtype), numbers.out_spec, tuple(shape[a] for a in numbers.out_spec)
    )


def multiply(builder: Builder, site: Site, lhs: Any, rhs: Any, op: str = "MatMul", *more: str) -> Any:
    """Writes a matrix product of any axes; `more` are operands of `op`."""
    contracting, batch = site.params["dimension_numbers"]
    sides = [lhs, rhs]
    shapes = [tuple(x.shape) for x in site.inputs[:2]]
    free = [[a for a in range(len(shapes[k])) if a not in (*contracting[k], *batch[k])] for k in (0, 1)]
    # Without batch axes, the operand that is not constant comes first: its free axes need not become one.
    swapped = not batch[0] and not isinstance(lhs, Tensor) and isinstance(rhs, Tensor) and not more
    first, second = (1, 0) if swapped else (0, 1)
    left = _matrix(
        builder, sides[first], shapes[first], batch[first], free[first], contracting[first], bool(batch[0])
    )
    right = _matrix(
        builder, sides[second], shapes[second], batch[second], contracting[second], free[second], True
    )
    if op == "MatMul" and len(free[first]) == len(free[second]) == 1 and not batch[0]:
        op = "Gemm"
    name = builder.node(op, left, right, *more)
    dims = [shapes[0][a] for a in batch[0]] + [shapes[k][a] for k in (first, second) for a in free[k]]
    several = (len(free[first]) != 1 and bool(batch[0])) or len(free[second]) != 1 or not free[first]
    if several:
        name = builder.reshaped(name, tuple(dims))
    out = tuple(site.output.shape)
    order = list(range(len(out)))
    if swapped:  # (free axes of rhs, free axes of lhs), in the order of which the result has the latter first
        ahead = len(free[0])
        order = [*range(ahead, len(out)), *range(ahead)]
    return Tensor(name, out, np.dtype(site.output.dtype), tuple(order), tuple(out[a] for a in order))


def _matrix(
    builder: Builder, x: Any, shape: Sequence[Any], batch: Sequence[int], rows: Sequence[int], columns: Sequence[int],
    two: bool,
) -> str:  # fmt: skip
    """The ONNX value of an operand as (batch..., rows, columns), each joined into one axis.

    Without `two` the axes of rows stay apart.
    """
    order = (*batch, *rows, *columns)
    apart = not two and rows
    sizes = [*(shape[a] for a in batch), *([shape[a] for a in rows] if apart else [_join(shape, rows)])]
    target = (*sizes, _join(shape, columns))
    if isinstance(x, Written):
        return x.write(builder, order, target)
    name = builder.full(x, order)
    if len(columns) == 1 and (len(rows) == 1 or apart):
        return name
    value = builder.constants.get(name)
    if value is not None and is_static(target):
        return builder.constant(value.reshape(target))
    return builder.reshaped(name, target)


def _join(shape: Sequence[Any], axes: Sequence[int]) -> Any:
    return count([shape[a] for a in axes])
