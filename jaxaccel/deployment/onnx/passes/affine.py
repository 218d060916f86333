"""Factors and offsets behind a product with weights, moved into its weights and bias."""

import dataclasses

import numpy as np

from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.graph import Node
from jaxaccel.deployment.onnx.passes.match import Matcher

_CHANNEL = {"Conv": 1, "Gemm": 1}
"""By operator with a bias: the axis of its result along which that varies."""


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Weights of a product: floats, or integers behind a DequantizeLinear."""

    floats: np.ndarray | None
    node: Node | None

    def scaled(self, builder: Builder, factor: np.ndarray, axis: int) -> str | None:
        """The name of the weights times a factor that varies along `axis` of them."""
        if self.floats is not None:
            shape = [1] * self.floats.ndim
            shape[axis] = -1
            return builder.constant((self.floats * factor.reshape(shape)).astype(np.float32))
        assert self.node is not None
        scale = builder.constants[self.node.inputs[1]]
        along = self.node.attributes.get("axis", axis)
        if (
            (factor <= 0).any()
            or scale.ndim > 1
            or (scale.ndim == 1 and along != axis)
            or "block_size" in self.node.attributes
        ):
            return None
        new = (scale * factor).astype(np.float32)
        zero = builder.constants[self.node.inputs[2]]
        names = [builder.constant(new), builder.constant(np.broadcast_to(zero, new.shape).copy())]
        return builder.node("DequantizeLinear", self.node.inputs[0], *names, axis=axis if new.ndim else None)


def fold_affine(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """A product times a constant, or plus one, for each channel: as weights and bias of the product."""
    if node.op not in ("Add", "Mul", "Sub"):
        return None
    for one, other in ((0, 1), (1, 0)) if node.op != "Sub" else ((0, 1),):
        product, constant = matcher.producers.get(node.inputs[one]), builder.constants.get(node.inputs[other])
        if product is None or constant is None or product.op not in ("Conv", "Gemm", "MatMul"):
            continue
        if matcher.reads.get(product.outputs[0], 0) > 1 or constant.dtype != np.float32:
            continue
        weights = _find_weights(builder, product, matcher)
        channels = None if weights is None else _channels(product, constant, builder, matcher)
        if weights is None or channels is None:
            continue
        if node.op == "Mul":
            return _scale(builder, product, weights, channels)
        if product.op in _CHANNEL:
            return _shift(builder, product, channels if node.op == "Add" else -channels)
    return None


def _find_weights(builder: Builder, product: Node, matcher: Matcher) -> _Weights | None:
    name = product.inputs[1]
    if name in builder.constants:
        return _Weights(builder.constants[name], None)
    node = matcher.producers.get(name)
    if node is not None and node.op == "DequantizeLinear" and node.inputs[0] in builder.constants:
        return _Weights(None, node)
    return None


def _weight_shape(builder: Builder, product: Node, matcher: Matcher) -> tuple[int, ...]:
    name = product.inputs[1]
    if name not in builder.constants:
        name = matcher.producers[name].inputs[0]
    return builder.constants[name].shape


def _channels(product: Node, constant: np.ndarray, builder: Builder, matcher: Matcher) -> np.ndarray | None:
    """The constant as one number for each channel of the product; None where it varies otherwise."""
    shape = _weight_shape(builder, product, matcher)
    count = shape[0] if product.op == "Conv" else shape[-1]
    if product.op == "MatMul" and len(shape) != 2:
        return None
    if constant.size == 1:
        return np.full(count, constant.item(), np.float32)
    behind = len(shape) - 2 if product.op == "Conv" else 0  # axes behind that of the channels
    varies = [a - constant.ndim + 1 for a, n in enumerate(constant.shape) if n != 1]
    return constant.reshape(-1) if varies == [-behind] and constant.size == count else None


def _scale(builder: Builder, product: Node, weights: _Weights, factor: np.ndarray) -> str | None:
    w = weights.scaled(builder, factor, 0 if product.op == "Conv" else 1)
    bias = builder.constants.get(product.inputs[2]) if len(product.inputs) > 2 else None
    if w is None or (len(product.inputs) > 2 and bias is None):
        return None
    more = [] if bias is None else [builder.constant((bias * factor).astype(np.float32))]
    return builder.node(product.op, product.inputs[0], w, *more, **product.attributes)


def _shift(builder: Builder, product: Node, offset: np.ndarray) -> str | None:
    bias = np.zeros_like(offset) if len(product.inputs) < 3 else builder.constants.get(product.inputs[2])
    if bias is None:
        return None
    name = builder.constant((bias + offset).astype(np.float32))
    return builder.node(product.op, *product.inputs[:2], name, **product.attributes)
