"""Small arithmetic that gives the same bits in every fusion, for every batch size and on every device.

A compiler may contract a multiply-add in one fused loop and not in another, and its vectorized and scalar cosines,
logarithms and powers differ in the last bit. So sums of products are sums of integers here, each product rounded to
a grid first, and transcendental functions are looked up in tables that NumPy computed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.data.augment.batch import look_up

STEPS = 4096
"""Angles and other draws that enter a transcendental function lie on a grid of so many steps."""

SUM_BITS = 23
"""Fraction bits of `exact_sum`; its terms saturate at 2**6, so that four of them fit into int32."""


def fixed_point(values: jax.Array, bits: int) -> jax.Array:
    """``values`` rounded to int32 multiples of ``2 ** -bits``."""
    return jnp.round(values * 2.0**bits).astype(jnp.int32)


def unit_fixed_point(values: jax.Array, bits: int) -> jax.Array:
    """`fixed_point` of float32 values in [0, 1], for up to 22 bits, where there are many of them.

    XLA:CPU vectorizes neither rounding nor a cast to integers; it does the sum with ``2 ** (23 - bits)``, whose
    lowest bit is worth ``2 ** -bits``.
    """
    shift = np.float32(2.0 ** (23 - bits))
    return jax.lax.bitcast_convert_type(values + shift, jnp.int32) - shift.view(np.int32)


def on_grid(lowest: np.ndarray | float, width: np.ndarray | float, draws: jax.Array) -> jax.Array:
    """``lowest + width * draws``, rounded to multiples of 2**-12.

    The sum is one of integers, and the result, an integer times a power of two, stays the same however the
    compiler reorders the multiplications that follow.
    """
    steps = fixed_point(jnp.float32(width) * draws, 12) + np.round(np.multiply(lowest, 4096)).astype(np.int32)
    return steps.astype(jnp.float32) / 4096


def exact_sum(*terms: jax.Array) -> jax.Array:
    """The sum of at most four terms, each at most a single product, on a grid of ``2 ** -SUM_BITS``."""
    limit = 2.0 ** (29 - SUM_BITS)
    total = sum(fixed_point(jnp.clip(term, -limit, limit), SUM_BITS) for term in terms)
    return jnp.asarray(total).astype(jnp.float32) / 2.0**SUM_BITS


def product(first: jax.Array, second: jax.Array) -> jax.Array:
    """``first @ second`` of small matrices (B, n, n), n <= 4, by `exact_sum`."""
    size = first.shape[-1]
    return exact_sum(*(first[..., :, k, None] * second[..., None, k, :] for k in range(size)))


def stacked(rows: Sequence[Sequence[jax.Array | float]]) -> jax.Array:
    """The matrices (B, n, n) float32 whose entries are given as (B,) arrays or plain numbers."""
    like = next(entry for row in rows for entry in row if isinstance(entry, jax.Array))
    zero = jnp.zeros_like(like, dtype=jnp.float32)
    return jnp.stack([jnp.stack([zero + entry for entry in row], axis=-1) for row in rows], axis=-2)


def directions(rotation: float) -> np.ndarray:
    """Cosine and sine of evenly spaced angles from -rotation to +rotation degrees, (STEPS + 1, 2)."""
    angles = np.radians(rotation) * np.linspace(-1, 1, STEPS + 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def drawn_from(table: np.ndarray, draws: jax.Array) -> jax.Array:
    """The entry of ``table`` (n, ...) at the share ``draws``, uniform in [0, 1), of its length."""
    place = jnp.minimum((draws * len(table)).astype(jnp.int32), len(table) - 1)
    return look_up(table, place)
