"""Convolutions in forms that XLA:CPU runs fast: sums of matrix products or of elementwise ones, in place of its own.

Every form is exact up to the order of summation, for strides, dilations on both sides, uneven and negative padding and
all layouts. Gradients are convolutions themselves: that by the weights has a large window and few output places.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, Any]
MANY = 64
"""Products that a form may be made of."""
PIECE = 8
"""Features of the sum in each of the ``pieces``."""


def forms(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> list[str]:
    """The forms in which a convolution of operands of these shapes can be computed, ``xla`` first.

    ``channels last``: XLA's own, of operands brought into the layout that it likes. ``pieces``: XLA's own for a few
    features of the sum at a time, which stay in the cache; in a gradient by weights these are examples. ``matmul``: one
    matrix product, of a window of 1. ``taps``: a product for each place in the window, summed. ``patches``: one product
    with the copied windows. ``places``: a product for each output place. ``shifts``: of a depthwise convolution, or of
    one with a single input channel, an elementwise product for each place in the window. ``sums``: of the gradient of a
    depthwise one by its weights, an elementwise product and its sum for each output place.
    """
    c = _Canonical.of(params, lhs, rhs)
    if 0 in (*lhs, *rhs, *c.sizes):
        return ["xla"]
    if params["batch_group_count"] > 1:
        alone = params["batch_group_count"] == lhs[params["dimension_numbers"].lhs_spec[0]]
        return ["xla", "sums"] if alone and math.prod(c.sizes) <= MANY else ["xla"]
    if params["feature_group_count"] > 1:
        depthwise = params["feature_group_count"] == c.features and c.taps <= MANY
        return ["xla", "shifts"] if depthwise else ["xla"]
    found = ["xla"] if c.is_channels_last else ["xla", "channels last"]
    if PIECE < c.features <= MANY * PIECE and c.features % PIECE == 0:
        found.append("pieces")
    if c.taps == 1:
        found.append("matmul")
    elif c.taps <= MANY:
        found += ["taps", "patches"]
    if c.features == 1 and c.taps <= MANY:
        found.append("shifts")
    if c.taps > 1 and math.prod(c.sizes) <= MANY:
        found.append("places")
    return found


def places(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> int:
    """How many places the output has for each example."""
    return math.prod(_Canonical.of(params, lhs, rhs).sizes)


def convolve(params: Params, lhs: jax.Array, rhs: jax.Array, form: str) -> jax.Array:
    """``conv_general_dilated`` in that form, in its own dtype."""
    c = _Canonical.of(params, lhs.shape, rhs.shape)
    if form == "pieces":
        return _pieces(params, lhs, rhs)
    if form == "channels last":
        return _channels_last(params, lhs, rhs)
    x, w = c.inputs(lhs), c.weights(rhs)
    dtype = params["preferred_element_type"] or jnp.result_type(lhs, rhs)
    out = _COMPUTE[form](c, x, w, params["precision"], dtype)
    return c.output(out).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _Canonical:
    """A convolution of (N, spatial..., C) with (window..., I, O) to (N, spatial..., O)."""

    numbers: Any
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    window: tuple[int, ...]
    sizes: tuple[int, ...]
    """Of the output."""
    features: int
    padding: tuple[tuple[int, int, int], ...]
    """For `jax.lax.pad`: exactly what the windows reach, and the dilation of the input."""

    @classmethod
    def of(cls, params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> "_Canonical":
        numbers = params["dimension_numbers"]
        spatial = [lhs[a] for a in numbers.lhs_spec[2:]]
        window = tuple(rhs[a] for a in numbers.rhs_spec[2:])
        strides, dilation = tuple(params["window_strides"]), tuple(params["rhs_dilation"])
        sizes, padding = [], []
        for n, w, s, d, inner, (low, high) in zip(
            spatial, window, strides, dilation, params["lhs_dilation"], params["padding"], strict=True
        ):
            wide = (n - 1) * inner + 1 if n else 0
            size = max(0, (wide + low + high - ((w - 1) * d + 1)) // s + 1)
            reach = (size - 1) * s + (w - 1) * d + 1
            sizes.append(size)
            padding.append((low, reach - low - wide, inner - 1))
        features = lhs[numbers.lhs_spec[1]]
        return cls(numbers, strides, dilation, window, tuple(sizes), features, tuple(padding))

    @property
    def is_channels_last(self) -> bool:
        n = len(self.window) + 2
        last = (0, n - 1, *range(1, n - 1))
        return self.numbers == (last, (n - 1, n - 2, *range(n - 2)), last)

    @property
    def taps(self) -> int:
        return math.prod(self.window)

    def inputs(self, lhs: jax.Array) -> jax.Array:
        spec = self.numbers.lhs_spec
        x = jnp.transpose(lhs, (spec[0], *spec[2:], spec[1]))
        return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *self.padding, (0, 0, 0)])

    def weights(self, rhs: jax.Array) -> jax.Array:
        spec = self.numbers.rhs_spec
        return jnp.transpose(rhs, (*spec[2:], spec[1], spec[0]))

    def output(self, out: jax.Array) -> jax.Array:
        return from_last(out, self.numbers.out_spec)

    def tap(self, x: jax.Array, place: Sequence[int]) -> jax.Array:
        """The inputs that one place in the window meets: (N, spatial of the output..., C)."""
        start = [i * d for i, d in zip(place, self.dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, self.sizes, self.strides, strict=True)]
        return jax.lax.slice(x, [0, *start, 0], [x.shape[0], *stop, x.shape[-1]], [1, *self.strides, 1])

    def window_at(self, x: jax.Array, place: Sequence[int]) -> jax.Array:
        """The inputs that one output place is made of: (N, window..., C)."""
        start = [i * s for i, s in zip(place, self.strides, strict=True)]
        stop = [a + (w - 1) * d + 1 for a, w, d in zip(start, self.window, self.dilation, strict=True)]
        return jax.lax.slice(x, [0, *start, 0], [x.shape[0], *stop, x.shape[-1]], [1, *self.dilation, 1])


def _pieces(params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    numbers = params["dimension_numbers"]
    count = lhs.shape[numbers.lhs_spec[1]] // PIECE
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
    plain = jax.lax.ConvDimensionNumbers(last, (n - 1, n - 2, *range(n - 2)), last)
    out = jax.lax.conv_general_dilated_p.bind(lhs, rhs, **{**params, "dimension_numbers": plain})
    return from_last(out, numbers.out_spec)


def from_last(out: jax.Array, spec: Sequence[int]) -> jax.Array:
    """(N, spatial..., O) in the layout of `spec`."""
    order = [0] * out.ndim
    for axis, source in zip(spec, (0, out.ndim - 1, *range(1, out.ndim - 1)), strict=True):
        order[axis] = source
    return jnp.transpose(out, order)


def _taps(c: _Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    out = None
    for place in np.ndindex(*c.window):
        part = jnp.matmul(c.tap(x, place), w[place], precision=precision, preferred_element_type=dtype)
        out = part if out is None else out + part
    assert out is not None
    return out


def _patches(c: _Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    patches = jnp.concatenate([c.tap(x, place) for place in np.ndindex(*c.window)], -1)
    # Without the barrier XLA computes each copied element anew for each output feature.
    patches = jax.lax.optimization_barrier(patches)
    return jnp.matmul(patches, w.reshape(-1, w.shape[-1]), precision=precision, preferred_element_type=dtype)


def _places(c: _Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    sums = tuple(range(1, x.ndim)), tuple(range(w.ndim - 1))
    parts = [
        jax.lax.dot_general(
            c.window_at(x, place), w, (sums, ((), ())), precision=precision, preferred_element_type=dtype
        )
        for place in np.ndindex(*c.sizes)
    ]
    return jnp.stack(parts, 1).reshape(x.shape[0], *c.sizes, w.shape[-1])


def _shifts(c: _Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    repeats = w.shape[-1] // c.features
    out = None
    for place in np.ndindex(*c.window):
        tap = c.tap(x, place)
        tap = tap if repeats == 1 else jnp.repeat(tap, repeats, axis=-1)
        part = tap.astype(dtype) * w[place].reshape(-1).astype(dtype)
        out = part if out is None else out + part
    assert out is not None
    return out


def _sums(c: _Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """Every output feature comes from the one example of its group."""
    x = jnp.repeat(x, w.shape[-1] // x.shape[0], axis=0)
    w = jnp.moveaxis(w, -1, 0).astype(dtype)
    summed = tuple(range(1, x.ndim))
    parts = [jnp.sum(c.window_at(x, place).astype(dtype) * w, summed) for place in np.ndindex(*c.sizes)]
    return jnp.stack(parts).reshape(1, *c.sizes, w.shape[0])


_COMPUTE = {
    "matmul": _taps, "taps": _taps, "patches": _patches, "places": _places, "shifts": _shifts, "sums": _sums
}  # fmt: skip
