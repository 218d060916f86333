"""Positions as rotations of queries and keys (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array | None = None, *, base: float = 10_000.0) -> jax.Array:
    """Rotates pairs of features by angles that grow with the position.

    Feature i and feature i + H / 2 are a pair, which turns by base ** (-2 i / H) from one position to the next. The
    product of a rotated query and a rotated key depends on the distance of their positions alone.

    Args:
      x: (B, T, N, H): N heads of H features, H even.
      positions: (T,) or (B, T) int; 0 to T - 1 where it is left out.
      base: sets the slowest pair's speed.

    Returns:
      (B, T, N, H), in the dtype of `x`.

    Raises:
      ValueError: H is odd.
    """
    length, features = x.shape[1], x.shape[-1]
    if features % 2:
        raise ValueError(f"rotate: heads of {features} features have no pairs; their number must be even")
    half = features // 2
    speeds = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    at = jnp.arange(length) if positions is None else positions
    angles = (at.astype(jnp.float32)[..., None] * speeds)[..., None, :]  # (..., T, 1, H / 2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    one, other = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1).astype(x.dtype)
