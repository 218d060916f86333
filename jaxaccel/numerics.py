"""Integer quantisation as arithmetic on arrays: ranges, scales, rounding.

A real value x is stood for by an integer q with ``x ~ scale * (q - zero_point)``. Ranges are symmetric, [-127, 127]
for 8 bits, so that negation is exact and zero is zero (Jacob et al. 2018, arXiv:1712.05877, section 2; Wu et al.
2020, arXiv:2004.09602, section 3). Rounding is to nearest, ties to even.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

TINY = 1e-12
"""The smallest range: an array of zeros gets a scale that divides."""


def qmax(bits: int) -> int:
    """The largest integer of `bits` bits in a symmetric range: 127 for 8, 7 for 4."""
    return 2 ** (bits - 1) - 1


def absmax(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Largest magnitude over `axes`, which stay with size 1; float32."""
    if any(x.shape[axis] == 0 for axis in axes):
        return jnp.zeros([1 if axis in axes else size for axis, size in enumerate(x.shape)], jnp.float32)
    return jnp.max(jnp.abs(x), axis=tuple(axes), keepdims=True).astype(jnp.float32)


def scale_of(largest: jax.Array, bits: int = 8) -> jax.Array:
    """The scale at which a magnitude of `largest` becomes the largest integer."""
    return jnp.maximum(largest, TINY) / qmax(bits)


_MAGIC = 1.5 * 2**23
"""Added to a float32 within ±2**22, it leaves the nearest integer, ties to even, in the low bits of the sum."""


def to_integers(x: jax.Array, scale: jax.Array, bits: int = 8) -> jax.Array:
    """Integers that stand for `x` at `scale`, saturated, as int8; those of a NaN are arbitrary.

    The sum with a constant rounds as `jnp.round` does, and the integer is read off its bits: XLA:CPU vectorises that,
    but neither its round nor its saturating conversion.
    """
    top = qmax(bits)
    shifted = jnp.clip(x.astype(jnp.float32) * (1 / scale), -top, top) + jnp.float32(_MAGIC)
    return jax.lax.bitcast_convert_type(shifted, jnp.int32).astype(jnp.int8)


@jax.custom_jvp
def round_straight_through(x: jax.Array) -> jax.Array:
    """Nearest integer with the derivative of the identity (Bengio et al. 2013, arXiv:1308.3432)."""
    return jnp.round(x)


@round_straight_through.defjvp
def _round_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return jnp.round(primals[0]), tangents[0]


def fake(x: jax.Array, scale: jax.Array, bits: int = 8) -> jax.Array:
    """`x` as its integers at `scale` stand for it, differentiable in both.

    The gradient with respect to x passes straight through inside the range and is 0 outside; that with respect to
    the scale is the one of LSQ (Esser et al. 2020, arXiv:1902.08153, equation 3), without its normalising factor.
    """
    top = qmax(bits)
    # Rounded before it is clipped: at a scale of its own values the largest one lies on the bound, where a clip halves
    # the gradient.
    q = round_straight_through(x * (1 / scale))
    q = jnp.where(jnp.abs(q) <= top, q, jnp.sign(q) * top)
    return (q * scale).astype(x.dtype)


def round_stochastic(key: jax.Array, x: jax.Array) -> jax.Array:
    """One of the two nearest integers, with expectation `x` (Gupta et al. 2015, arXiv:1502.02551)."""
    return jnp.floor(x + jax.random.uniform(key, x.shape, x.dtype))
