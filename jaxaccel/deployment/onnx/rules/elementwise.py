"""Primitives that compute each element by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxaccel.core.interpret import Rule
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.tensor import Tensor, dtype_in_file

Write = Callable[..., str]
"""``write(builder, site, *names)`` writes an operator on ONNX values that broadcast; returns the result."""

OPERATORS = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "div": "Div", "eq": "Equal",
    "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual",
    "log": "Log", "logistic": "Sigmoid", "lt": "Less", "mul": "Mul", "neg": "Neg", "pow": "Pow",
    "sign": "Sign", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
"""Primitives that are one operator."""
LOGICAL = {
    "and": ("And", "BitwiseAnd"),
    "or": ("Or", "BitwiseOr"),
    "xor": ("Xor", "BitwiseXor"),
    "not": ("Not", "BitwiseNot"),
}
"""By primitive: the operator of booleans, and that of integers."""


def make_rules(builder: Builder) -> dict[str, Rule]:
    """The rules by primitive."""
    written: dict[str, Write] = {
        **{name: _plain(op) for name, op in OPERATORS.items()},
        **{name: _logical(*ops) for name, ops in LOGICAL.items()},
        "cbrt": lambda b, site, x: b.node(
            "Mul", b.node("Sign", x), b.node("Pow", b.node("Abs", x), _one(b, site, 1 / 3))
        ),
        "clamp": lambda b, site, low, x, high: b.node("Min", b.node("Max", x, low), high),
        "convert_element_type": lambda b, site, x: b.cast(x, site.inputs[0].dtype, site.params["new_dtype"]),
        "erfc": lambda b, site, x: b.node("Sub", _one(b, site), b.node("Erf", x)),
        "exp2": lambda b, site, x: b.node("Exp", b.node("Mul", x, _one(b, site, np.log(2)))),
        "expm1": lambda b, site, x: b.node("Sub", b.node("Exp", x), _one(b, site)),
        "integer_pow": _power,
        "is_finite": lambda b, site, x: b.node("Not", b.node("Or", b.node("IsNaN", x), b.node("IsInf", x))),
        "log1p": lambda b, site, x: b.node("Log", b.node("Add", x, _one(b, site))),
        "max": _maximum,
        "min": _minimum,
        "ne": lambda b, site, x, y: b.node("Not", b.node("Equal", x, y)),
        "rem": lambda b, site, x, y: b.node("Mod", x, y, fmod=1),
        "round": _round,
        "rsqrt": lambda b, site, x: b.node("Reciprocal", b.node("Sqrt", x)),
        "select_n": _select,
        "shift_left": _shift("LEFT"),
        "shift_right_logical": _shift("RIGHT"),
        "square": lambda b, site, x: b.node("Mul", x, x),
        **dict.fromkeys(
            ("copy", "copy_p", "reduce_precision", "stop_gradient", "sharding_constraint"), _same
        ),
        **dict.fromkeys(("pvary", "pcast", "pbroadcast", "real", "name"), _same),
    }
    rules: dict[str, Rule] = {name: _rule(builder, write) for name, write in written.items()}
    return {**rules, "optimization_barrier": lambda site, *operands: list(operands)}


def _rule(builder: Builder, write: Write) -> Rule:
    def rule(site: Site, *operands: Any) -> Any:
        constants = [builder.value(x) for x in operands]
        if all(x is not None for x in constants):
            return _folded(builder, site, [x for x in constants if x is not None])
        order, names, stored = align(builder, operands, len(site.output.shape))
        same = [x.dropped for x in operands if isinstance(x, Tensor) and x.order == order and x.dropped]
        name, dtype = write(builder, site, *names), np.dtype(site.output.dtype)
        return Tensor(name, tuple(site.output.shape), dtype, order, stored, same[0] if same else ())

    return rule


def align(
    builder: Builder, operands: Sequence[Any], ndim: int
) -> tuple[tuple[int, ...], list[str], tuple[Any, ...]]:
    """(order, ONNX values in that order, shape that they broadcast to) of operands of one operator.

    The order is that of the operand with the fewest broadcast axes, so that most data stay where they are.
    """
    tensors = [x for x in operands if isinstance(x, Tensor) and x.ndim == ndim]
    moving = [x for x in tensors if x.name not in builder.constants] or tensors
    leader = min(moving, key=lambda x: (sum(n == 1 for n in x.stored), x.in_order), default=None)
    order = tuple(range(ndim)) if leader is None else leader.order
    names, stored = [], [1] * ndim
    for x in operands:
        if (x.ndim if isinstance(x, Tensor) else np.ndim(x)) == 0:
            names.append(builder.tensor(x).name)
            continue
        names.append(trim(builder, builder.ordered(x, order)))
        sizes = (
            [x.stored[x.order.index(a)] for a in order]
            if isinstance(x, Tensor)
            else [x.shape[a] for a in order]
        )
        stored = [n if m == 1 else m for m, n in zip(stored, sizes, strict=True)]
    return order, names, tuple(stored)


def trim(builder: Builder, name: str) -> str:
    """A constant without leading axes of size 1: a bias as engines look for it."""
    value = builder.constants.get(name)
    if value is None or value.ndim < 2 or value.shape[0] != 1:
        return name
    first = next((axis for axis, n in enumerate(value.shape) if n != 1), value.ndim)
    return builder.constant(value.reshape(value.shape[first:]))


def _folded(builder: Builder, site: Site, arrays: Sequence[np.ndarray]) -> Tensor:
    """The result of constants that are broadcast, for the part that is stored."""
    shape = np.broadcast_shapes(*[x.shape for x in arrays])
    whole = [
        jnp.broadcast_to(jnp.asarray(x, like.dtype), shape)
        for x, like in zip(arrays, site.inputs, strict=True)
    ]
    value = np.asarray(site.bind(*whole))
    if value.ndim < len(site.output.shape):
        value = value.reshape([1] * len(site.output.shape))
    return builder.stretched(value, site.output.shape, site.output.dtype)


def _plain(op: str) -> Write:
    return lambda b, site, *names: b.node(op, *names)


def _logical(of_booleans: str, of_integers: str) -> Write:
    return lambda b, site, *names: b.node(of_booleans if site.output.dtype == bool else of_integers, *names)


def _same(builder: Builder, site: Site, x: str) -> str:
    return x


def _one(builder: Builder, site: Site, value: float = 1) -> str:
    """A number of the dtype that the site computes in."""
    return builder.constant(np.array(value, dtype_in_file(site.inputs[0].dtype)))


def _power(builder: Builder, site: Site, x: str) -> str:
    y = site.params["y"]
    if y == 2:
        return builder.node("Mul", x, x)
    if y == 3:
        return builder.node("Mul", builder.node("Mul", x, x), x)
    return builder.node("Reciprocal", x) if y == -1 else builder.node("Pow", x, _one(builder, site, y))


def _maximum(builder: Builder, site: Site, x: str, y: str) -> str:
    for one, other in ((x, y), (y, x)):
        value = builder.constants.get(one)
        if value is not None and value.size == 1 and np.issubdtype(value.dtype, np.floating):
            if value.item() == 0:
                return builder.node("Relu", other)
            if value.item() == -np.inf:
                return other
    return builder.node("Max", x, y)


def _minimum(builder: Builder, site: Site, x: str, y: str) -> str:
    for one, other in ((x, y), (y, x)):
        value, node = builder.constants.get(one), builder.producers.get(other)
        if value is not None and value.size == 1 and node is not None and node.op == "Relu":  # ReLU6
            return builder.node(
                "Clip", node.inputs[0], _one(builder, site, 0), _one(builder, site, value.item())
            )
    return builder.node("Min", x, y)


def _shift(direction: str) -> Write:
    def write(builder: Builder, site: Site, x: str, by: str) -> str:
        dtype = np.dtype(site.inputs[0].dtype)
        unsigned = np.dtype(f"uint{8 * dtype.itemsize}")
        moved = (builder.cast(name, dtype, unsigned) for name in (x, by))
        return builder.cast(builder.node("BitShift", *moved, direction=direction), unsigned, dtype)

    return write


def _round(builder: Builder, site: Site, x: str) -> str:
    if int(site.params["rounding_method"]) == 1:  # to nearest, ties to even
        return builder.node("Round", x)
    half = builder.node("Add", builder.node("Abs", x), _one(builder, site, 0.5))
    return builder.node("Mul", builder.node("Sign", x), builder.node("Floor", half))


def _select(builder: Builder, site: Site, which: str, *cases: str) -> str:
    if site.inputs[0].dtype == bool:
        return builder.node("Where", which, cases[1], cases[0])
    out = cases[-1]
    for k in range(len(cases) - 2, -1, -1):
        chosen = builder.node("Equal", which, builder.constant(np.array(k, site.inputs[0].dtype)))
        out = builder.node("Where", chosen, cases[k], out)
    return out
