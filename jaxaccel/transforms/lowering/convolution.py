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

from jaxaccel.transforms.lowering.canonical import Canonical, Params, from_last

MANY = 64
"""Products that a form may be made of."""
PIECE = 8
"""Features of the sum in each of the ``pieces``, at least."""
CACHED = 2**16
"""Numbers in each of the ``pieces``, about: smaller ones cost more than they gain, larger ones leave the cache."""
BLOCK = 2048
"""Rows of the sum in each of the ``row blocks``, at most."""


def forms(params: Params, lhs: Sequence[int], rhs: Sequence[int], integers: bool = False) -> list[str]:
    """The forms in which a convolution of operands of these shapes can be computed, ``xla`` first.

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
    c = Canonical.of(params, lhs, rhs)
    if 0 in (*lhs, *rhs, *c.sizes):
        return ["xla"]
    if params["batch_group_count"] > 1:
        alone = params["batch_group_count"] == lhs[params["dimension_numbers"].lhs_spec[0]]
        return ["xla", "sums"] if alone and math.prod(c.sizes) <= MANY else ["xla"]
    if params["feature_group_count"] > 1:
        depthwise = params["feature_group_count"] == c.features and c.taps <= MANY
        return ["xla", "shifts"] if depthwise else ["xla"]
    found = ["xla"] if c.is_channels_last and len(c.window) > 1 else ["xla", "channels last"]
    if 1 < c.features // _piece(c.features, math.prod(lhs)) <= MANY:
        found.append("pieces")
    if c.taps == 1:
        found.append("matmul")
    elif c.taps <= MANY:
        found += ["taps", "patches"]
    if c.features == 1 and c.taps <= MANY:
        found.append("shifts")
    if c.taps > 1 and math.prod(c.sizes) <= MANY:
        found += ["places", "row blocks"] if math.prod(c.sizes) == 1 else ["places"]
    if integers and c.taps > 1 and max(c.strides) > 1 and set(c.dilation) == {1}:
        found.append("space to depth")
    return found


def places(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> int:
    """How many places the output has for each example."""
    return math.prod(Canonical.of(params, lhs, rhs).sizes)


def convolve(params: Params, lhs: jax.Array, rhs: jax.Array, form: str) -> jax.Array:
    """``conv_general_dilated`` in that form, in its own dtype."""
    c = Canonical.of(params, lhs.shape, rhs.shape)
    if form == "pieces":
        return _pieces(params, lhs, rhs)
    if form == "channels last":
        return _channels_last(params, lhs, rhs)
    x, w = c.inputs(lhs), c.weights(rhs)
    dtype = params["preferred_element_type"] or jnp.result_type(lhs, rhs)
    out = _COMPUTE[form](c, x, w, params["precision"], dtype)
    return c.output(out).astype(dtype)


def _piece(features: int, size: int) -> int:
    """Features in each of the ``pieces`` of an array of `size` numbers: all, where they cannot be divided."""
    if features % PIECE:
        return features
    piece = PIECE
    while features % (2 * piece) == 0 and (piece * (size // features) < CACHED or features // piece > MANY):
        piece *= 2
    return piece


def _pieces(params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    numbers = params["dimension_numbers"]
    features = lhs.shape[numbers.lhs_spec[1]]
    count = features // _piece(features, lhs.size)
    pairs = zip(
        jnp.split(lhs, count, numbers.lhs_spec[1]), jnp.split(rhs, count, numbers.rhs_spec[1]), strict=True
    )
    return sum(jax.lax.conv_general_dilated_p.bind(x, w, **params) for x, w in pairs)  # type: ignore[return-value]


def _channels_last(params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    numbers, n = params["dimension_numbers"], lhs.ndim
    last = (0, n - 1, *range(1, n - 1))
    lhs = jnp.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    rhs = jnp.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    # Without the barrier XLA undoes it.
    lhs, rhs = jax.lax.optimization_barrier((lhs, rhs))
    if n > 3:
        plain = jax.lax.ConvDimensionNumbers(last, (n - 1, n - 2, *range(n - 2)), last)
        out = jax.lax.conv_general_dilated_p.bind(lhs, rhs, **{**params, "dimension_numbers": plain})
        return from_last(out, numbers.out_spec)
    out = jax.lax.conv_general_dilated(
        lhs[:, None],
        rhs[None],
        (1, *params["window_strides"]),
        ((0, 0), *params["padding"]),
        (1, *params["lhs_dilation"]),
        (1, *params["rhs_dilation"]),
        ("NHWC", "HWIO", "NHWC"),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return from_last(out[:, 0], numbers.out_spec)


def _taps(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    out = None
    for place in np.ndindex(*c.window):
        part = jnp.matmul(c.tap(x, place), w[place], precision=precision, preferred_element_type=dtype)
        out = part if out is None else out + part
    assert out is not None
    return out


def _patches(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    # Without the barriers XLA computes what is copied anew for each place, and again for each output feature.
    x = jax.lax.optimization_barrier(x)
    patches = jnp.concatenate([c.tap(x, place) for place in np.ndindex(*c.window)], -1)
    patches = jax.lax.optimization_barrier(patches)
    return jnp.matmul(patches, w.reshape(-1, w.shape[-1]), precision=precision, preferred_element_type=dtype)


def _space_to_depth(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    windows = [-(-k // s) for k, s in zip(c.window, c.strides, strict=True)]
    blocks = [n - 1 + k for n, k in zip(c.sizes, windows, strict=True)]
    x = _blocks(x, blocks, c.strides, first=1)
    w = _blocks(w, windows, c.strides, first=0)
    # Without the barrier XLA writes the blocks anew for each channel that it multiplies.
    x = jax.lax.optimization_barrier(x)
    n = x.ndim
    last = (0, n - 1, *range(1, n - 1))
    numbers = jax.lax.ConvDimensionNumbers(last, (n - 1, n - 2, *range(n - 2)), last)
    return jax.lax.conv_general_dilated(
        x,
        w,
        (1,) * (n - 2),
        "VALID",
        dimension_numbers=numbers,
        precision=precision,
        preferred_element_type=dtype,
    )


def _blocks(x: jax.Array, counts: Sequence[int], size: Sequence[int], first: int) -> jax.Array:
    """Axes from `first` on as `counts` blocks of that size, filled up with zeros, which move to the next-to-last axes.

    The axes of a block are joined with the one that follows them: (..., counts..., product of `size` * C, ...).
    """
    dims = len(counts)
    fill = [(0, n * s - x.shape[first + k]) for k, (n, s) in enumerate(zip(counts, size, strict=True))]
    x = jnp.pad(x, [(0, 0)] * first + fill + [(0, 0)] * (x.ndim - first - dims))
    head, tail = x.shape[:first], x.shape[first + dims :]
    pairs = [n for pair in zip(counts, size, strict=True) for n in pair]
    x = x.reshape(*head, *pairs, *tail)
    outer, inner = range(first, first + 2 * dims, 2), range(first + 1, first + 2 * dims, 2)
    x = jnp.transpose(x, (*range(first), *outer, *inner, *range(first + 2 * dims, x.ndim)))
    return x.reshape(*head, *counts, math.prod(size) * tail[0], *tail[1:])


def _places(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    sums = tuple(range(1, x.ndim)), tuple(range(w.ndim - 1))
    parts = [
        jax.lax.dot_general(
            c.window_at(x, place), w, (sums, ((), ())), precision=precision, preferred_element_type=dtype
        )
        for place in np.ndindex(*c.sizes)
    ]
    return jnp.stack(parts, 1).reshape(x.shape[0], *c.sizes, w.shape[-1])


def _row_blocks(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    # The features of a gradient by weights are examples: first, as they are in its operands.
    x = jnp.swapaxes(c.window_at(x, (0,) * len(c.window)), 0, -1)
    w = jnp.moveaxis(w, -2, 0)
    x, w = x.reshape(-1, x.shape[-1]), w.reshape(-1, w.shape[-1])
    rows = len(x)
    least = -(-rows // BLOCK)
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


def _shifts(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    repeats = w.shape[-1] // c.features
    out = None
    for place in np.ndindex(*c.window):
        tap = c.tap(x, place)
        tap = tap if repeats == 1 else jnp.repeat(tap, repeats, axis=-1)
        part = tap.astype(dtype) * w[place].reshape(-1).astype(dtype)
        out = part if out is None else out + part
    assert out is not None
    return out


def _sums(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """Every output feature comes from the one example of its group."""
    x = jnp.repeat(x, w.shape[-1] // x.shape[0], axis=0)
    w = jnp.moveaxis(w, -1, 0).astype(dtype)
    summed = tuple(range(1, x.ndim))
    parts = [jnp.sum(c.window_at(x, place).astype(dtype) * w, summed) for place in np.ndindex(*c.sizes)]
    return jnp.stack(parts).reshape(1, *c.sizes, w.shape[0])


_COMPUTE = {
    "matmul": _taps, "taps": _taps, "patches": _patches, "places": _places, "row blocks": _row_blocks,
    "shifts": _shifts, "sums": _sums,
    "space to depth": _space_to_depth,
}  # fmt: skip
FORMS = frozenset(("pieces", "channels last", *_COMPUTE))
"""All there are, but XLA's own."""
