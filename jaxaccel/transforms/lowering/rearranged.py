"""Forms of a convolution that are XLA's own convolution still, of operands cut or brought into another layout."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.transforms.lowering.base import Params
from jaxaccel.transforms.lowering.canonical import Canonical, from_last

MAX_PIECES = 64
"""Pieces that a convolution is cut into."""
MIN_PIECE_FEATURES = 8
"""Features of the sum in each piece."""
MIN_PIECE_NUMBERS = 2**16
"""Numbers in each piece, about: smaller ones cost more than they gain, larger ones leave the cache."""


def count_pieces(features: int, size: int) -> int:
    """Counts the pieces of an array of `size` numbers: 1 where its features cannot be divided, or are not known."""
    if not (isinstance(features, int) and isinstance(size, int)) or features % MIN_PIECE_FEATURES:
        return 1
    piece = MIN_PIECE_FEATURES
    while features % (2 * piece) == 0 and (
        piece * (size // features) < MIN_PIECE_NUMBERS or features // piece > MAX_PIECES
    ):
        piece *= 2
    return features // piece


def sum_pieces(params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Sums XLA's own convolutions of a few features each."""
    numbers = params["dimension_numbers"]
    count = count_pieces(lhs.shape[numbers.lhs_spec[1]], lhs.size)
    pairs = zip(
        jnp.split(lhs, count, numbers.lhs_spec[1]), jnp.split(rhs, count, numbers.rhs_spec[1]), strict=True
    )
    return sum(jax.lax.conv_general_dilated_p.bind(x, w, **params) for x, w in pairs)  # type: ignore[return-value]


def convolve_channels_last(params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Convolves operands that were brought into the layout that XLA likes, 1-D ones as 2-D."""
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


def convolve_blocks(c: Canonical, x: jax.Array, w: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """Convolves blocks of pixels as single ones with more channels, with a stride of 1."""
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
    """Cuts axes from `first` on into `counts` blocks of `size`, filled up with zeros; those move to the axis behind.

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
