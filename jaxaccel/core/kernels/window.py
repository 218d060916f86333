"""What a convolution of XLA is to oneDNN: forward, the gradient by its inputs, or the one by its weights.

All three are one operation to XLA, which says by its sizes, dilations and groups which one it is.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

Params = Mapping[str, Any]


class Direction(enum.IntEnum):
    """What is computed, by the numbers that the kernels know them by."""

    FORWARD = 0
    INPUTS = 1
    WEIGHTS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """A convolution as oneDNN is told of it. Specs are orders of axes: (batch, channels, spatial) or, of weights,
    (outputs, inputs, spatial)."""

    direction: Direction
    groups: int
    group_axis: int
    """Which axis of the weights has the groups: 0 the outputs, 1 the inputs."""
    lhs_spec: tuple[int, ...]
    rhs_spec: tuple[int, ...]
    out_spec: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    """Before the first element."""

    @property
    def is_reversed(self) -> bool:
        """Tells whether the weights go in reversed: XLA's gradient by inputs has reversed them before."""
        return self.direction is Direction.INPUTS

    @property
    def window_axes(self) -> tuple[int, ...]:
        """Spatial axes of the right operand."""
        return self.rhs_spec[2:]


def plan_convolution(params: Params, lhs: Sequence[Any], rhs: Sequence[Any]) -> Plan | None:
    """Plans ``conv_general_dilated`` of operands of these shapes; None where oneDNN cannot compute it.

    The number of examples may be symbolic.
    """
    numbers = params["dimension_numbers"]
    if not 1 <= len(lhs) - 2 <= 3 or not _are_known(lhs, numbers.lhs_spec[0]) or not _are_known(rhs, -1):
        return None
    if params["batch_group_count"] > 1:
        makers = [_plan_weights]
    elif any(n > 1 for n in params["lhs_dilation"]):
        makers = [_plan_inputs]
    else:
        makers = [_plan_forward]
        inner, outer = (rhs[a] for a in numbers.rhs_spec[2:]), _count_places(params, lhs, rhs)
        if params["feature_group_count"] == 1 and math.prod(inner) > math.prod(outer):
            makers = [_plan_weights, _plan_forward]
    return next((plan for make in makers if (plan := make(params, lhs, rhs))), None)


def _are_known(shape: Sequence[Any], batch: int) -> bool:
    return all(isinstance(n, int) and n > 0 for axis, n in enumerate(shape) if axis != batch) and (
        batch < 0 or not isinstance(shape[batch], int) or shape[batch] > 0
    )


def _reach(size: int, dilation: int) -> int:
    """Elements from the first to the last of `size` ones at that distance."""
    return (size - 1) * dilation + 1


def _count_places(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> list[int]:
    """Spatial sizes of the result."""
    numbers = params["dimension_numbers"]
    rows = zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], params["window_strides"], params["lhs_dilation"],
        params["rhs_dilation"], params["padding"], strict=True,
    )  # fmt: skip
    return [
        max(0, (_reach(lhs[a], inner) + low + high - _reach(rhs[w], d)) // s + 1)
        for a, w, s, inner, d, (low, high) in rows
    ]


def _fits(plan: Plan, src: Sequence[int], window: Sequence[int], dst: Sequence[int]) -> bool:
    """Tells whether oneDNN takes these sizes: no negative padding before, less than a stride of it behind."""
    rows = zip(src, window, dst, plan.strides, plan.dilation, plan.padding, strict=True)
    return 0 not in dst and all(
        low >= 0 and (out - 1) * s + _reach(w, d) - n - low > -s for n, w, out, s, d, low in rows
    )


def _swap(spec: Sequence[int]) -> tuple[int, ...]:
    return (spec[1], spec[0], *spec[2:])


def _sizes(shape: Sequence[int], spec: Sequence[int]) -> list[int]:
    return [shape[axis] for axis in spec[2:]]


def _plan_forward(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> Plan | None:
    numbers = params["dimension_numbers"]
    plan = Plan(
        Direction.FORWARD, params["feature_group_count"], 0,
        numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec,
        tuple(params["window_strides"]), tuple(params["rhs_dilation"]), tuple(low for low, _ in params["padding"]),
    )  # fmt: skip
    places = _count_places(params, lhs, rhs)
    return plan if _fits(plan, _sizes(lhs, plan.lhs_spec), _sizes(rhs, plan.rhs_spec), places) else None


def _plan_inputs(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> Plan | None:
    """The left operand is a cotangent, and its dilation was the stride."""
    numbers = params["dimension_numbers"]
    if set(params["window_strides"]) != {1}:
        return None
    window = _sizes(rhs, numbers.rhs_spec)
    rows = zip(window, params["rhs_dilation"], params["padding"], strict=True)
    plan = Plan(
        Direction.INPUTS, params["feature_group_count"], 1,
        numbers.lhs_spec, _swap(numbers.rhs_spec), numbers.out_spec,
        tuple(params["lhs_dilation"]), tuple(params["rhs_dilation"]),
        tuple((w - 1) * d - low for w, d, (low, _) in rows),
    )  # fmt: skip
    return plan if _fits(plan, _count_places(params, lhs, rhs), window, _sizes(lhs, plan.lhs_spec)) else None


def _plan_weights(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> Plan | None:
    """The right operand is a cotangent, the batch is summed as channels are, and the result is a window."""
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["feature_group_count"] > 1:
        return None
    plan = Plan(
        Direction.WEIGHTS, params["batch_group_count"], 0,
        _swap(numbers.lhs_spec), _swap(numbers.rhs_spec), _swap(numbers.out_spec),
        tuple(params["rhs_dilation"]), tuple(params["window_strides"]), tuple(low for low, _ in params["padding"]),
    )  # fmt: skip
    places = _count_places(params, lhs, rhs)
    return plan if _fits(plan, _sizes(lhs, plan.lhs_spec), places, _sizes(rhs, plan.rhs_spec)) else None


def find_shape(params: Params, plan: Plan, lhs: Sequence[int], rhs: Sequence[int]) -> tuple[int, ...]:
    """Finds the shape of the result."""
    numbers = params["dimension_numbers"]
    batch, features = lhs[numbers.lhs_spec[0]] // params["batch_group_count"], rhs[numbers.rhs_spec[0]]
    sizes = (batch, features, *_count_places(params, lhs, rhs))
    return tuple(size for _, size in sorted(zip(numbers.out_spec, sizes, strict=True)))
