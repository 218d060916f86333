"""Convolutions in forms that XLA:CPU runs fast: sums of matrix products or of elementwise ones, in place of its own.

Every form is exact up to the order of summation, for strides, dilations on both sides, uneven and negative padding and
all layouts. Gradients are convolutions themselves: that by the weights has a large window and few output places.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.kernels import convolution as kernels
from jaxaccel.transforms.lowering import rearranged
from jaxaccel.transforms.lowering.base import KERNEL, XLA, Choice, Lowering, Params
from jaxaccel.transforms.lowering.canonical import Canonical

MAX_UNROLLED_PRODUCTS = 64
"""Products that a form may be made of."""
MAX_BLOCK_ROWS = 2048
"""Rows of the sum in each of the ``row blocks``."""
MIN_SUMMED_CHANNELS = 128
"""Channels from which on the gradient of a depthwise convolution by its weights is better summed channel by channel."""
MIN_PIECED_EXAMPLES = 64
"""Examples from which on the gradient of a convolution by its weights is better made of a few at a time."""


def list_forms(params: Params, lhs: Sequence[int], rhs: Sequence[int], integers: bool = False) -> list[str]:
    """Lists the forms in which a convolution of operands of these shapes can be computed, `XLA` first.

    - ``channels last``: XLA's own, of operands brought into the layout that it likes, 1-D as 2-D.
    - ``pieces``: XLA's own for a few features of the sum at a time, which stay in the cache; in a gradient by weights
      these are examples.
    - ``matmul``: one matrix product, of a window of 1.
    - ``taps``: a product for each place in the window, summed.
    - ``patches``: one product with the copied windows.
    - ``places``: a product for each output place.
    - ``row blocks``: where there is one such place, as in the gradient of a window of 1 by its weights, its product in
      blocks of the rows that are summed. XLA transposes none of these as a whole, nor computes anew for each column
      what it would have fused into that.
    - ``shifts``: of a depthwise convolution, or of one with a single input channel, an elementwise product for each
      place in the window.
    - ``sums``: of the gradient of a depthwise one by its weights, an elementwise product and its sum for each output
      place.
    - ``space to depth``: of a strided one, XLA's own of stride 1, each block of pixels as one with more channels; of
      `integers` alone, because the zeros that fill its weights up turn an infinity into a NaN.
    """
    if not are_known(params, lhs, rhs):
        return [XLA]
    c = Canonical.of(params, lhs, rhs)
    if 0 in (*lhs, *rhs, *c.sizes):
        return [XLA]
    few_taps, few_places = c.taps <= MAX_UNROLLED_PRODUCTS, math.prod(c.sizes) <= MAX_UNROLLED_PRODUCTS
    if params["batch_group_count"] > 1:
        alone = params["batch_group_count"] == lhs[params["dimension_numbers"].lhs_spec[0]]
        return [XLA, "sums"] if alone and few_places else [XLA]
    if params["feature_group_count"] > 1:
        depthwise = params["feature_group_count"] == c.features
        return [XLA, "shifts"] if depthwise and few_taps else [XLA]
    found = [XLA] if c.is_channels_last and len(c.window) > 1 else [XLA, "channels last"]
    if 1 < rearranged.count_pieces(c.features, math.prod(lhs)) <= rearranged.MAX_PIECES:
        found.append("pieces")
    if c.taps == 1:
        found.append("matmul")
    elif few_taps:
        found += ["taps", "patches"]
    if c.features == 1 and few_taps:
        found.append("shifts")
    if c.taps > 1 and few_places:
        found += ["places", "row blocks"] if math.prod(c.sizes) == 1 else ["places"]
    if integers and c.taps > 1 and max(c.strides) > 1 and set(c.dilation) == {1}:
        found.append("space to depth")
    return found


def are_known(params: Params, lhs: Sequence[Any], rhs: Sequence[Any]) -> bool:
    """Tells whether all sizes but the number of examples are numbers: no form is for symbolic ones."""
    batch = params["dimension_numbers"].lhs_spec[0]
    return all(isinstance(n, int) for axis, n in enumerate(lhs) if axis != batch) and all(
        isinstance(n, int) for n in rhs
    )


def convolve(params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """Computes ``conv_general_dilated`` in that form, in its own dtype."""
    lhs, rhs = operands
    if form == KERNEL:
        return kernels.convolve(params, lhs, rhs)
    if form in _XLA_OF_OTHERS:
        return _XLA_OF_OTHERS[form](params, lhs, rhs)
    c = Canonical.of(params, lhs.shape, rhs.shape)
    x, w = c.inputs(lhs), c.weights(rhs)
    dtype = params["preferred_element_type"] or jnp.result_type(lhs, rhs)
    out = _CANONICAL[form](c, x, w, params["precision"], dtype)
    return c.output(out).astype(dtype)


def choose_form(params: Params, shapes: Sequence[Any]) -> Choice:
    """Chooses the form that XLA:CPU runs fast in float32."""
    lhs, rhs = (x.shape for x in shapes)
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] > 1:
        wide = rhs[numbers.rhs_spec[0]] >= MIN_SUMMED_CHANNELS
        reason = "XLA:CPU runs gradients of depthwise convolutions one group at a time"
        return ("sums", reason) if wide else (XLA, "")
    if params["feature_group_count"] > 1:
        return "shifts", "XLA:CPU runs depthwise convolutions one group at a time"
    c = Canonical.of(params, lhs, rhs)
    places = math.prod(c.sizes)
    if c.taps > 1 and places == 1:
        examples_last = numbers.lhs_spec[0] == len(lhs) - 1
        form = "row blocks" if examples_last else "places"
        return form, "is a matrix product: the gradient of a window of 1"
    if c.features == 1:
        return "shifts", "a single input channel"
    if places < c.taps and c.features >= MIN_PIECED_EXAMPLES:
        return "pieces", "the gradient by weights; a few examples at a time stay in the cache"
    return XLA, ""


def list_all_forms(params: Params, shapes: Sequence[Any]) -> list[str]:
    """Lists `list_forms`, and the kernel of oneDNN where it is installed and has the convolution."""
    found = list_forms(params, *(x.shape for x in shapes))
    return [*found, KERNEL] if kernels.supports(params, *shapes) else found


def choose_by_rule(params: Params, shapes: Sequence[Any]) -> Choice:
    """Chooses the form that runs fast in float32: the kernel, where there is one."""
    outputs = shapes[1].shape[params["dimension_numbers"].rhs_spec[0]]
    if outputs > 1 and KERNEL in list_all_forms(params, shapes):
        return KERNEL, "XLA:CPU has no kernel as fast"
    return choose_form(params, shapes)


CONVOLUTION = Lowering(
    jax.lax.conv_general_dilated_p,
    list_all_forms,
    convolve,
    choose_by_rule,
    evidence="python -m benchmarks lowerings",
)
"""Also what gradients of convolutions are computed by."""


def _sum_taps(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    out = None
    for place in np.ndindex(*c.window):
        part = jnp.matmul(c.tap(x, place), w[place], precision=precision, preferred_element_type=dtype)
        out = part if out is None else out + part
    assert out is not None
    return out


def _multiply_patches(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    # Without the barriers XLA computes what is copied anew for each place, and again for each output feature.
    x = jax.lax.optimization_barrier(x)
    patches = jnp.concatenate([c.tap(x, place) for place in np.ndindex(*c.window)], -1)
    patches = jax.lax.optimization_barrier(patches)
    return jnp.matmul(patches, w.reshape(-1, w.shape[-1]), precision=precision, preferred_element_type=dtype)


def _multiply_places(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    sums = tuple(range(1, x.ndim)), tuple(range(w.ndim - 1))
    parts = [
        jax.lax.dot_general(
            c.window_at(x, place), w, (sums, ((), ())), precision=precision, preferred_element_type=dtype
        )
        for place in np.ndindex(*c.sizes)
    ]
    return jnp.stack(parts, 1).reshape(x.shape[0], *c.sizes, w.shape[-1])


def _multiply_row_blocks(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    # The features of a gradient by weights are examples: first, as they are in its operands.
    x = jnp.swapaxes(c.window_at(x, (0,) * len(c.window)), 0, -1)
    w = jnp.moveaxis(w, -2, 0)
    x, w = x.reshape(-1, x.shape[-1]), w.reshape(-1, w.shape[-1])
    rows = len(x)
    least = -(-rows // MAX_BLOCK_ROWS)
    count = next((n for n in range(least, 4 * least) if rows % n == 0), least)
    if fill := -rows % count:
        x, w = (jnp.pad(operand, [(0, fill), (0, 0)]) for operand in (x, w))
    x, w = (operand.reshape(count, -1, operand.shape[-1]) for operand in (x, w))
    # The product transposes its first operand, piece by piece: better the narrower one.
    swapped = x.shape[-1] > w.shape[-1]
    first, second = (w, x) if swapped else (x, w)
    numbers = (((1,), (1,)), ((0,), (0,)))
    parts = jax.lax.dot_general(first, second, numbers, precision=precision, preferred_element_type=dtype)
    out = parts.sum(0).T if swapped else parts.sum(0)
    return out.reshape(out.shape[0], *c.sizes, out.shape[1])


def _sum_shifts(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    repeats = w.shape[-1] // c.features
    out = None
    for place in np.ndindex(*c.window):
        tap = c.tap(x, place)
        tap = tap if repeats == 1 else jnp.repeat(tap, repeats, axis=-1)
        part = tap.astype(dtype) * w[place].reshape(-1).astype(dtype)
        out = part if out is None else out + part
    assert out is not None
    return out


def _sum_places(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """Every output feature comes from the one example of its group."""
    x = jnp.repeat(x, w.shape[-1] // x.shape[0], axis=0)
    w = jnp.moveaxis(w, -1, 0).astype(dtype)
    summed = tuple(range(1, x.ndim))
    parts = [jnp.sum(c.window_at(x, place).astype(dtype) * w, summed) for place in np.ndindex(*c.sizes)]
    return jnp.stack(parts).reshape(1, *c.sizes, w.shape[0])


_CANONICAL = {
    "matmul": _sum_taps, "taps": _sum_taps, "patches": _multiply_patches, "places": _multiply_places,
    "row blocks": _multiply_row_blocks, "shifts": _sum_shifts, "sums": _sum_places,
    "space to depth": rearranged.convolve_blocks,
}  # fmt: skip
_XLA_OF_OTHERS = {"pieces": rearranged.sum_pieces, "channels last": rearranged.convolve_channels_last}
FORMS = frozenset((*_XLA_OF_OTHERS, *_CANONICAL))
"""All there are, but XLA's own."""
