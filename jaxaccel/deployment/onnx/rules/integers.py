"""Products with quantized weights: QDQ at calibrated scales, dynamic scales, or weights alone.

QDQ is how ONNX writes static quantization: QuantizeLinear and DequantizeLinear around a product of floats, which
ONNX Runtime and OpenVINO replace by a product of integers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxaccel.core import numerics
from jaxaccel.core.arrays import QuantArray, expand
from jaxaccel.core.options import Options
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder, count
from jaxaccel.deployment.onnx.graph import Node
from jaxaccel.deployment.onnx.rules.elementwise import trim
from jaxaccel.deployment.onnx.tensor import Tensor
from jaxaccel.transforms import int8_products
from jaxaccel.transforms.calibrate import Calibration
from jaxaccel.transforms.int8 import Activations

Write = Callable[..., Any]
MOVES = (
    *(
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Transpose",
        "Slice",
        "Expand",
        "Identity",
        "MaxPool",
        "AveragePool",
    ),
    *("ReduceMax", "ReduceMean"),
)
"""Operators whose results are not negative where their operand is not."""


@dataclasses.dataclass(frozen=True)
class Integers(Options):
    """What becomes of products with quantized weights."""

    builder: Builder
    activations: Activations
    calibration: Calibration | None

    def product(self, site: Site, lhs: Any, rhs: Any, write: Write) -> Any:
        """The product that `write` writes for floats."""
        side = 1 if isinstance(rhs, QuantArray) else 0
        w, x = ((lhs, rhs), (rhs, lhs))[side]
        if isinstance(x, QuantArray):
            x = x.materialize()
        real = isinstance(x, Tensor) and np.issubdtype(x.dtype, np.floating)
        if self.activations == "static" and real:
            x = self._quantized(site, 1 - side, x)
        elif self.activations == "dynamic" and real and side == 1 and _fits_dynamic(site, w):
            return self._dynamic(site, x, w, write)
        pair = (x, Weight(w)) if side == 1 else (Weight(w), x)
        return write(self.builder, site, *pair)

    def _quantized(self, site: Site, operand: int, x: Tensor) -> Tensor:
        """`x` rounded at the calibrated scale; whoever else reads it then reads the same integers, as `int8` has it."""
        assert self.calibration is not None
        largest = float(self.calibration.range_of(site.name))
        known = site.recall(x)
        if known == largest:
            return x
        b = self.builder
        scale, zero = _grid(b, x.name, largest)
        name = b.node("DequantizeLinear", b.node("QuantizeLinear", x.name, scale, zero), scale, zero)
        rounded = dataclasses.replace(x, name=name)
        site.replace(operand, rounded)
        site.remember(rounded, largest)
        return rounded

    def _dynamic(self, site: Site, x: Tensor, w: QuantArray, write: Write) -> Tensor:
        b = self.builder
        order = (
            site.params["dimension_numbers"].lhs_spec
            if site.primitive != "dot_general"
            else tuple(range(x.ndim))
        )
        name, scale, zero = b.nodes("DynamicQuantizeLinear", b.full(x, order), results=3)
        stored = tuple(x.shape[axis] for axis in order)
        integers = Tensor(name, x.shape, np.dtype(np.uint8), tuple(order), stored)
        op = "MatMulInteger" if site.primitive == "dot_general" else "ConvInteger"
        product = write(b, site, integers, np.asarray(w.integers()), op, zero)
        if product is NotImplemented:
            return product
        of_w = int8_products.align_with_output(
            site.primitive, site.params, 1, expand(w.scale, w.shape), x.ndim
        )
        factor = b.stretched(np.asarray(of_w, np.float32), site.output.shape, np.float32)
        # As one vector, or number, which is how ONNX Runtime takes scales when it joins these nodes to one.
        both = b.node("Mul", scale, trim(b, b.ordered(factor, product.order)))
        cast = b.node("Cast", product.name, to=np.dtype(np.float32))
        return dataclasses.replace(product, name=b.node("Mul", cast, both))


@dataclasses.dataclass(frozen=True)
class Weight:
    """A quantized weight, which is written with its axes as its product needs them."""

    array: QuantArray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        return self.array.shape

    def write(self, builder: Builder, order: Sequence[int], shape: Sequence[int] | None = None) -> str:
        """The dequantized weight with its axes in `order`, then in `shape`: its integers are stored so."""
        values, scale, zero = (
            None if x is None else np.transpose(np.asarray(x), order)
            for x in (self.array.integers(), self.array.scale, self.array.zero_point)
        )
        assert values is not None and scale is not None
        if shape is not None and tuple(shape) != values.shape:
            scale, zero = (_joined(x, values.shape, shape) for x in (scale, zero))
            values = values.reshape(shape)
        zero = np.zeros(scale.shape, np.int8) if zero is None else zero
        varies = [axis for axis, n in enumerate(scale.shape) if n != 1]
        blocked = [axis for axis in varies if scale.shape[axis] != values.shape[axis]]
        if len(varies) > 1 or blocked:
            return self._write_blocks(builder, values, scale, zero, blocked)
        operands = [x.reshape(-1) if varies else x.reshape(()) for x in (scale, zero)]
        names = [builder.constant(np.ascontiguousarray(values)), *map(builder.constant, operands)]
        return builder.node("DequantizeLinear", *names, axis=varies[0] if varies else None)

    def _write_blocks(
        self, builder: Builder, values: np.ndarray, scale: np.ndarray, zero: np.ndarray, blocked: list[int]
    ) -> str:
        """A weight with a scale for each block along one axis; where several axes have blocks, the floats."""
        if len(blocked) > 1:
            whole = (values - _spread(zero, values.shape)) * _spread(scale, values.shape)
            return builder.constant(whole.astype(np.float32))
        axis = blocked[0] if blocked else 0
        size = values.shape[axis] // scale.shape[axis]
        shape = tuple(scale.shape[axis] if a == axis else n for a, n in enumerate(values.shape))
        names = [builder.constant(np.ascontiguousarray(values))]
        names += [builder.constant(np.broadcast_to(x, shape).copy()) for x in (scale, zero)]
        return builder.node("DequantizeLinear", *names, axis=axis, block_size=size)


def _grid(builder: Builder, name: str, largest: float) -> tuple[str, str]:
    """(scale, zero point) of activations whose largest magnitude is calibrated.

    All are uint8, because ONNX Runtime's kernels are fastest, or exist only, for these. What has a sign is stored 128
    higher; the integers are those of `int8`. What is never negative starts at 0, so that rounding does a ReLU's work.
    It then saturates at 255 and not at 127: where a ReLU6 ends at the largest magnitude, the scale is finer instead.
    """
    node = find_source(builder, name)
    scale = max(np.float32(largest) / np.float32(numerics.qmax(8)), np.float32(numerics.TINY))
    if node is not None and node.op == "Clip":
        scale = max(np.float32(largest) / np.float32(255), np.float32(numerics.TINY))
    return builder.constant(np.float32(scale)), builder.constant(np.uint8(128 if node is None else 0))


def find_source(builder: Builder, name: str) -> Node | None:
    """The ReLU, or Clip at 0, of whose values those of `name` are copies; None where they may be negative."""
    node = builder.producers.get(name)
    while node is not None and node.op in MOVES:
        node = builder.producers.get(node.inputs[0])
    if node is None or node.op not in ("Relu", "Clip"):
        return None
    return node if node.op == "Relu" or builder.constants[node.inputs[1]].item() == 0 else None


def _joined(scale: np.ndarray | None, shape: Sequence[int], target: Sequence[int]) -> Any:
    """Scales of `shape` for the same array in the shape `target`, whose axes join some of it."""
    if scale is None:
        return None
    whole = np.broadcast_to(_spread(scale, shape), shape).reshape(target)
    for axis in range(len(target)):
        first = np.take(whole, [0], axis)
        whole = first if np.array_equal(np.broadcast_to(first, whole.shape), whole) else whole
    return whole


def _spread(scale: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Scales of blocks, repeated to the size of their axis; size 1 stays."""
    for axis, n in enumerate(shape):
        if scale.shape[axis] not in (1, n):
            scale = np.repeat(scale, n // scale.shape[axis], axis)
    return scale


def _fits_dynamic(site: Site, w: QuantArray) -> bool:
    """Whether the integers of a weight can be multiplied as they are, and scaled after."""
    plain = w.zero_point is None and count(w.shape) > 0
    return plain and int8_products.can_scale_after(site.primitive, site.params, 1, w)
