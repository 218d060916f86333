"""Integers all the way: what is quantized and dequantized around products, so that engines see products of integers."""

import dataclasses

import numpy as np

from jaxaccel.core import numerics
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.graph import Node
from jaxaccel.deployment.onnx.passes.match import Matcher

PRODUCTS = ("Conv", "Gemm", "MatMul")
_MOVES = ("MaxPool", "Relu", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Concat")
"""What integers pass through as numbers do: rounding before it or behind it is the same. Relu where 0 is the least."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The least and the largest value that a quantized one has."""

    low: float
    high: float


def quantize_bias(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """The bias of a product of quantized operands: int32, in steps of its sums."""
    bias = (
        builder.constants.get(node.inputs[2])
        if node.op in ("Conv", "Gemm") and len(node.inputs) > 2
        else None
    )
    if bias is None:
        return None
    scales = []
    for name in node.inputs[:2]:
        made = matcher.producers.get(name)
        while made is not None and made.op in _MOVES and not scales:
            made = matcher.producers.get(made.inputs[0])
        if made is None or made.op != "DequantizeLinear" or "block_size" in made.attributes:
            return None
        scales.append(builder.constants[made.inputs[1]].astype(np.float64))
    if scales[0].ndim or (
        scales[1].ndim and matcher.producers[node.inputs[1]].attributes["axis"] != (node.op != "Conv")
    ):
        return None
    scale = np.broadcast_to((scales[0] * scales[1]).astype(np.float32), bias.shape)
    with np.errstate(over="ignore", divide="ignore"):
        integers = np.rint(bias.astype(np.float64) / scale)
    if not (np.abs(integers) < 2**31).all():
        return None
    names = (integers.astype(np.int32), scale.copy(), np.zeros(bias.shape, np.int32))
    name = builder.node("DequantizeLinear", *map(builder.constant, names), axis=0)
    return builder.node(node.op, *node.inputs[:2], name, **node.attributes)


def drop_relu(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """Rounding to integers of which 0 is the least, which does what a ReLU before it does."""
    if node.op != "QuantizeLinear" or builder.constants[node.inputs[2]].item() != 0:
        return None
    source = matcher.producers.get(node.inputs[0])
    if source is None or source.op not in ("Relu", "Clip"):
        return None
    if source.op == "Clip":
        low, high = (builder.constants[name].item() for name in source.inputs[1:3])
        if low > 0 or 255 * builder.constants[node.inputs[1]].item() > high * (1 + 1e-6):
            return None
    return builder.node("QuantizeLinear", source.inputs[0], *node.inputs[1:3])


def quantize_earlier(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """Rounding moved in front of pooling and the like, to the product or sum that computes the values."""
    if node.op != "QuantizeLinear" or len(node.inputs) < 3:
        return None
    source = matcher.producers.get(node.inputs[0])
    if source is None or source.op not in _MOVES or source.op == "Relu":
        return None
    name = _rounded(builder, matcher, node.inputs[0], (node.inputs[1], node.inputs[2]))
    return None if name is None else builder.node("QuantizeLinear", name, *node.inputs[1:3])


def _rounded(builder: Builder, matcher: Matcher, name: str, grid: tuple[str, str]) -> str | None:
    """The value as `grid` rounds it, rounded where it is computed; None where it need not be, or cannot."""
    node = matcher.producers.get(name)
    if node is None or node.op in ("QuantizeLinear", "DequantizeLinear"):
        return None
    least = builder.constants[grid[1]].item() == 0
    after = matcher.producers.get(node.inputs[0])
    relu = node.op == "Relu" and after is not None and after.op not in _MOVES
    if node.op not in _MOVES or matcher.reads.get(name, 0) > 1 or relu or (node.op == "Relu" and not least):
        if node.op not in (*PRODUCTS, "Add", "Relu", "Clip"):
            return None
        return builder.node("DequantizeLinear", builder.node("QuantizeLinear", name, *grid), *grid)
    count = len(node.inputs) if node.op == "Concat" else 1
    parts = [_rounded(builder, matcher, part, grid) for part in node.inputs[:count]]
    if any(part is None for part in parts) and node.op != "Concat":
        return None
    if all(part is None for part in parts):
        return None
    again = [
        _again(builder, x, grid) if part is None else part
        for x, part in zip(node.inputs, parts, strict=False)
    ]
    return builder.node(node.op, *again, *node.inputs[count:], **node.attributes)


def _again(builder: Builder, name: str, grid: tuple[str, str]) -> str:
    return builder.node("DequantizeLinear", builder.node("QuantizeLinear", name, *grid), *grid)


def bound_sum(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """The product in a residual sum, rounded within the range that can matter for the sum, whose range is known.

    With a quantized shortcut s in [a, b] and a sum that is rounded within [p, q], a product outside of [p - b, q - a]
    saturates the sum. Within this range it is stored in 8 bits too, in steps about as large as those of the sum.
    """
    if node.op != "QuantizeLinear":
        return None
    middle = matcher.producers.get(node.inputs[0])
    total = matcher.producers.get(middle.inputs[0]) if middle is not None and middle.op == "Relu" else middle
    if total is None or total.op != "Add" or middle is None:
        return None
    for one, other in ((0, 1), (1, 0)):
        product = matcher.producers.get(total.inputs[one])
        shortcut = _find_range(builder, matcher, total.inputs[other])
        if (
            product is None
            or product.op not in PRODUCTS
            or shortcut is None
            or not _quantized(matcher, product)
        ):
            continue
        found = range_of(builder, node)
        grid = _asymmetric(builder, found.low - shortcut[0].high, found.high - shortcut[0].low)
        rounded = _again(builder, total.inputs[one], grid)
        other_name = total.inputs[other]
        if shortcut[1] is not None:  # moved since it was rounded: rounded again, which changes nothing
            other_name = _again(builder, other_name, shortcut[1])
        name = builder.node("Add", rounded, other_name)
        name = name if middle is total else builder.node("Relu", name)
        return builder.node("QuantizeLinear", name, *node.inputs[1:3])
    return None


def range_of(builder: Builder, node: Node) -> Range:
    """What a QuantizeLinear rounds within; where 0 is the least, as far as the calibration saw."""
    scale, zero = (builder.constants[name].item() for name in node.inputs[1:3])
    top = numerics.qmax(8)
    return Range(0.0, top * scale) if zero == 0 else Range(-zero * scale, (255 - zero) * scale)


def _find_range(builder: Builder, matcher: Matcher, name: str) -> tuple[Range, tuple[str, str] | None] | None:
    """(range, grid where it was moved since it was rounded) of a value that is dequantized, or padded with zeros."""
    node = matcher.producers.get(name)
    moved = False
    while node is not None and node.op in (*_MOVES, "Pad") and node.op not in ("Concat", "Relu"):
        node, moved = matcher.producers.get(node.inputs[0]), True
    if node is None or node.op != "DequantizeLinear":
        return None
    before = matcher.producers.get(node.inputs[0])
    if before is None or before.op != "QuantizeLinear":
        return None
    grid = (before.inputs[1], before.inputs[2])
    return range_of(builder, before), grid if moved else None


def _quantized(matcher: Matcher, product: Node) -> bool:
    for name in product.inputs[:2]:
        made = matcher.producers.get(name)
        while made is not None and made.op in _MOVES:
            made = matcher.producers.get(made.inputs[0])
        if made is None or made.op != "DequantizeLinear":
            return False
    return True


def _asymmetric(builder: Builder, low: float, high: float) -> tuple[str, str]:
    """(scale, zero point) of uint8 within [low, high], which holds 0."""
    scale = max((high - low) / 255, numerics.TINY)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return builder.constant(np.float32(scale)), builder.constant(np.uint8(zero))
