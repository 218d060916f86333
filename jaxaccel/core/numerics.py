"""Integer quantization as arithmetic on arrays: ranges, scales, rounding.

A real value x is stood for by an integer q with ``x ~ scale * (q - zero_point)``. Ranges are symmetric, [-127, 127]
for 8 bits, so that negation is exact and zero is zero (Jacob et al. 2018, arXiv:1712.05877, section 2; Wu et al.
2020, arXiv:2004.09602, section 3). Rounding is to nearest, ties to even.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TINY = float(np.finfo(np.float32).tiny)
"""The smallest scale, that of an array of zeros: the smallest normal number of float32, whose reciprocal is finite."""


def widen(x: jax.Array) -> jax.Array:
    """`x` in float32, or in float64 if it is: the dtype of sums and averages."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def qmax(bits: int) -> int:
    """The largest integer of `bits` bits in a symmetric range: 127 for 8, 7 for 4."""
    return 2 ** (bits - 1) - 1


def absmax(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Largest magnitude over `axes`, which stay with size 1; float32."""
    if any(x.shape[axis] == 0 for axis in axes):
        return jnp.zeros([1 if axis in axes else size for axis, size in enumerate(x.shape)], jnp.float32)
    return jnp.max(jnp.abs(x), axis=tuple(axes), keepdims=True).astype(jnp.float32)


def scale_of(largest: jax.Array, bits: int = 8) -> jax.Array:
    """The scale at which a magnitude of `largest` becomes the largest integer; never less than `TINY`."""
    return jnp.maximum(largest / qmax(bits), TINY)


MAGIC = 1.5 * 2**23
"""Added to a float32 within ±2**22, it leaves the nearest integer, ties to even, in the low bits of the sum."""


def to_integers(x: jax.Array, scale: jax.Array, bits: int = 8) -> jax.Array:
    """Integers that stand for `x` at `scale`, saturated, as int8; those of a NaN are arbitrary.

    The sum with a constant rounds as `jnp.round` does, and the integer is read off its bits: XLA:CPU vectorizes that,
    but neither its round nor its saturating conversion.
    """
    top = qmax(bits)
    shifted = jnp.clip(x.astype(jnp.float32) * (1 / scale), -top, top) + jnp.float32(MAGIC)
    return jax.lax.bitcast_convert_type(shifted, jnp.int32).astype(jnp.int8)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def fake_quantize(x: jax.Array, scale: jax.Array, bits: int = 8) -> jax.Array:
    """`x` as its integers at `scale` stand for it, differentiable in both.

    The gradient with respect to x passes straight through inside the range (Bengio et al. 2013, arXiv:1308.3432) and is
    0 outside; that with respect to the scale is the one of LSQ (Esser et al. 2020, arXiv:1902.08153, equation 3),
    without its normalizing factor.
    """
    q = _in_steps(x, scale, bits)[1]
    return (q * scale.astype(q.dtype)).astype(x.dtype)


def _in_steps(x: jax.Array, scale: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """`x` in units of `scale`, and the integers that stand for it, both in float32 at least."""
    x = widen(x)
    steps, top = x * (1 / scale.astype(x.dtype)), qmax(bits)
    return steps, jnp.clip(jnp.round(steps), -top, top)


@fake_quantize.defjvp
def _fake_jvp(bits: int, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (x, scale), (dx, dscale) = primals, tangents
    steps, q = _in_steps(x, scale, bits)
    # Rounded before it is compared: at a scale of its own values the largest one lies on the bound, and is inside.
    inside = jnp.abs(jnp.round(steps)) <= qmax(bits)
    tangent = jnp.where(inside, widen(dx), 0) + jnp.where(inside, q - steps, q) * dscale.astype(q.dtype)
    return fake_quantize(x, scale, bits), tangent.astype(x.dtype)


def round_stochastic(key: jax.Array, x: jax.Array) -> jax.Array:
    """One of the two nearest integers, with expectation `x` (Gupta et al. 2015, arXiv:1502.02551)."""
    return jnp.floor(x + jax.random.uniform(key, x.shape, x.dtype))
