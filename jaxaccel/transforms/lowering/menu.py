"""Which form each convolution, product and pooling takes on the CPU: by rules that measurements back, or by timing.

`python -m benchmarks lowerings` measures the menu, `retargeted` what it gives whole steps; the records are what
`known` was written from. `integers` is the menu of int8 convolutions, from `python -m benchmarks precision_layers`:
XLA:CPU has fused int8 kernels for ungrouped 2-D convolutions in NHWC with 32 channels or more; beside them int8 is up
to 17 times slower than float32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from jaxaccel.transforms.lowering import convolution, pooling, products, tuning

FEW = 9
"""Elements of a window up to which one slice for each of them is fast."""
MANY = 64
"""The same for sums of windows at every place."""
WIDE = 128
"""Channels from which on the gradient of a depthwise convolution by its weights is better summed channel by channel."""
BATCH = 64
"""Examples from which on the gradient of a convolution by its weights is better made of a few at a time."""
ROWS = 128
"""Rows of a product at each step of a loop up to which one product of all steps is faster."""
CACHE = 2**26
"""Bytes of an input up to which several passes over it cost little, and that a loop may keep for products outside."""
LANES = 32
"""Channels that the CPU's int8 kernels want."""
OUTPUTS = 16
"""Output channels below which int8 gains nothing on the CPU."""
COPIES_PAY = jax.__version_info__ >= (0, 11)
"""Whether int8 products of copied windows beat float32 convolutions: since JAX 0.11 the CPU's are twice as fast."""
XLA = "xla"
"""The form that XLA itself gives it."""
PRIMITIVES: tuple[str, ...] = (
    "conv_general_dilated",
    "dot_general",
    "reduce_window_max",
    "reduce_window_sum",
    "select_and_scatter_add",
)
Params = Mapping[str, Any]
Choice = Literal["auto", "int8"]


def forms(primitive: str, params: Params, shapes: Sequence[Any]) -> list[str]:
    """The forms that compute it, `XLA` first. `shapes` are the operands', with dtypes."""
    if not all(jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in shapes):
        return [XLA]
    if primitive == "conv_general_dilated":
        return convolution.forms(params, shapes[0].shape, shapes[1].shape)
    if primitive == "dot_general":
        return products.forms(params, shapes[0].shape, shapes[1].shape)
    if primitive == "select_and_scatter_add":
        return pooling.forms(params, shapes[1].shape) if params["select_prim"] is jax.lax.ge_p else [XLA]
    return pooling.forms(params, shapes[0].shape)


def compute(primitive: str, params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """The primitive on `operands` in one of its `forms` other than `XLA`."""
    if primitive == "conv_general_dilated":
        return convolution.convolve(params, operands[0], operands[1], form)
    if primitive == "dot_general":
        return products.compute(params, operands[0], operands[1], form)
    if primitive == "select_and_scatter_add":
        return pooling.scatter(operands[0], operands[1], params, form)
    return (pooling.maximum if primitive == "reduce_window_max" else pooling.total)(operands[0], params, form)


def known(primitive: str, params: Params, shapes: Sequence[Any]) -> tuple[str, str]:
    """(form, reason) by the rules, which go by float32 alone: that is what was measured."""
    found = forms(primitive, params, shapes)
    if len(found) == 1:
        return XLA, "has no other form"
    if any(x.dtype != jax.numpy.float32 for x in shapes):
        return XLA, f"was not measured in {shapes[0].dtype}"
    form, reason = _RULES[primitive](primitive, params, shapes)
    better = form != XLA and form in found
    return (form, reason) if better else (XLA, "no other form is known to be faster")


def _convolution(primitive: str, params: Params, shapes: Sequence[Any]) -> tuple[str, str]:
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] > 1:
        wide = shapes[1].shape[numbers.rhs_spec[0]] >= WIDE
        return (
            ("sums", "XLA:CPU runs gradients of depthwise convolutions one group at a time")
            if wide
            else (XLA, "")
        )
    if params["feature_group_count"] > 1:
        return "shifts", "XLA:CPU runs depthwise convolutions one group at a time"
    window = math.prod(shapes[1].shape[axis] for axis in numbers.rhs_spec[2:])
    places = convolution.places(params, shapes[0].shape, shapes[1].shape)
    if window > 1 and places == 1:
        examples_last = numbers.lhs_spec[0] == shapes[0].ndim - 1
        form = "row blocks" if examples_last else "places"
        return form, "is a matrix product: the gradient of a window of 1"
    if shapes[0].shape[numbers.lhs_spec[1]] == 1:
        return "shifts", "a single input channel"
    if places < window and shapes[0].shape[numbers.lhs_spec[1]] >= BATCH:
        return "pieces", "the gradient by weights; a few examples at a time stay in the cache"
    return XLA, ""


def _pooling(primitive: str, params: Params, shapes: Sequence[Any]) -> tuple[str, str]:
    window = params["window_dimensions"]
    apart = tuple(window) == tuple(params["window_strides"])
    if primitive == "select_and_scatter_add":
        if apart:
            return "blocks", "XLA:CPU scatters one element at a time"
        return ("taps", "XLA:CPU scatters one element at a time") if math.prod(window) <= FEW else (XLA, "")
    if apart:
        return "blocks", "windows that do not overlap"
    everywhere = set(params["window_strides"]) == {1} and _overlaps(params, shapes[0].shape)
    if primitive == "reduce_window_sum" and everywhere and math.prod(window) <= MANY:
        return "taps", "windows at every place: the gradient of a sum"
    small = math.prod(shapes[0].shape) * shapes[0].dtype.itemsize <= CACHE
    if math.prod(window) <= FEW and small:
        return "taps", "a window of few elements"
    return XLA, ""


def _overlaps(params: Params, shape: Sequence[int]) -> bool:
    """Whether there is more than one window along an axis on which windows are larger than 1."""
    counts = pooling.sizes(params, shape)
    return any(n > 1 and w > 1 for n, w in zip(counts, params["window_dimensions"], strict=True))


def leaves_a_loop(rows: int, kept: int) -> bool:
    """Whether a matrix product of a scan is better run once for all steps, outside.

    Args:
      rows: of its operand at one step.
      kept: bytes that all steps together keep for it. A loop over micro-batches is there to save them.
    """
    known = isinstance(rows, int) and isinstance(kept, int)  # not where a shape is symbolic
    return known and rows <= ROWS and kept <= CACHE


def integers(params: Params, lhs: Any, rhs: Any, backend: str, choice: Choice = "auto") -> tuple[str, str]:
    """(form, reason) for an int8 convolution of operands of these shapes.

    The form ``float32`` means: leave it as it was. With the `choice` ``int8`` that is only where integers give wrong
    values.
    """
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    if backend == "gpu" and grouped:
        return "float32", "grouped int8 convolutions give wrong values on GPUs (openxla/xla#49123)"
    if backend != "cpu":
        return XLA, ""
    form, reason = "float32", "grouped int8 convolutions are slow on the CPU"
    if not grouped:
        form, reason = _integers(params, lhs, rhs)
    return (form, reason) if choice == "auto" or form != "float32" else (XLA, "")


def _integers(params: Params, lhs: Any, rhs: Any) -> tuple[str, str]:
    numbers = params["dimension_numbers"]
    if not 3 <= lhs.ndim <= 4:
        return "float32", f"{lhs.ndim - 2}-D int8 convolutions are slow on the CPU"
    if any(d > 1 for d in params["lhs_dilation"]):
        return "float32", "transposed int8 convolutions are slow on the CPU"
    features, outputs = lhs.shape[numbers.lhs_spec[1]], rhs.shape[numbers.rhs_spec[0]]
    window = math.prod(rhs.shape[axis] for axis in numbers.rhs_spec[2:])
    if outputs < OUTPUTS or features * window < LANES:
        return "float32", f"{features} x {outputs} channels are too few for int8 on the CPU"
    found = convolution.forms(params, lhs.shape, rhs.shape, integers=True)
    if "matmul" in found:
        return "matmul", ""
    if lhs.ndim == 4 and (numbers.lhs_spec != (0, 3, 1, 2) or numbers.out_spec != (0, 3, 1, 2)):
        return "float32", "int8 convolutions with channels first are slow on the CPU"
    if min(features, outputs) < LANES:
        if not COPIES_PAY:
            return (
                "float32",
                f"{features} x {outputs} channels are too few for int8 on the CPU before JAX 0.11",
            )
        block = features * math.prod(params["window_strides"])
        wanted = "space to depth" if block < LANES else "patches"
        wanted = wanted if wanted in found else "patches"
        return (wanted, "") if wanted in found else ("float32", "few channels and a large window")
    return ("channels last" if lhs.ndim == 3 else XLA), ""


def tuned(primitive: str, params: Params, shapes: Sequence[Any]) -> tuple[str, str]:
    """(form, reason) by timing all forms on this device, once."""
    found = forms(primitive, params, shapes)
    if len(found) == 1:
        return XLA, "has no other form"
    kept = {key: str(value) for key, value in sorted(params.items()) if key not in ("out_sharding",)}
    what = f"{primitive} {kept} {[f'{x.dtype}{list(x.shape)}' for x in shapes]} {found}"
    primitive_ = _PRIMITIVES[primitive]
    contenders = {
        form: (lambda *operands, form=form: compute(primitive, params, operands, form))
        if form != XLA
        else (lambda *operands: primitive_.bind(*operands, **params))
        for form in found
    }
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
    return tuning.fastest(what, contenders, shapes), "timed on this device"


_RULES = dict.fromkeys(PRIMITIVES, _pooling) | {
    "conv_general_dilated": _convolution,
    "dot_general": lambda *_: ("swapped", "the gradient by weights; XLA:CPU transposes the wider operand"),
}
_PRIMITIVES = {
    "conv_general_dilated": jax.lax.conv_general_dilated_p,
    "dot_general": jax.lax.dot_general_p,
    "reduce_window_max": jax.lax.reduce_window_max_p,
    "reduce_window_sum": jax.lax.reduce_window_sum_p,
    "select_and_scatter_add": jax.lax.select_and_scatter_add_p,
}
