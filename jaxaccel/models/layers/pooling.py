"""Pooling of images (B, H, W, C)."""

import jax
import jax.numpy as jnp
from flax import nnx


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows that do not overlap.

    Values equal ``reduce_window`` with SAME padding. Where several elements of a window share the maximum
    they share its gradient, while ``reduce_window`` gives all of it to the first one.

    Args:
      x: (B, H, W, C) float. An odd height or width is padded with -inf, so that no row or column is lost.

    Returns:
      (B, ceil(H/2), ceil(W/2), C), dtype of `x`.
    """
    _, height, width, _ = x.shape
    if height % 2 or width % 2:
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=-jnp.inf)
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = [_larger(blocks[:, :, i, :, 0], blocks[:, :, i, :, 1]) for i in (0, 1)]
    return _larger(*rows)


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # JAX's own rules ask which element equals the maximum. XLA may compute the elements anew for that, rounded
    # differently, so that none does and the gradient is lost, or 0 / 0. Elements compared with each other cannot miss.
    (a, b), (moved_a, moved_b) = primals, tangents
    return _larger(a, b), jnp.where(a > b, moved_a, jnp.where(b > a, moved_b, (moved_a + moved_b) / 2))


def global_max_pool(x: jax.Array) -> jax.Array:
    """Maximum over height and width: (B, H, W, C) -> (B, C). The first of equal elements has the gradient."""
    # As a window, whose gradient asks which element is largest and not which equals the maximum.
    return nnx.max_pool(x, x.shape[1:3])[:, 0, 0]


def max_pool_3x3(x: jax.Array, *, stride: int = 2, padding: tuple[int, int] = (1, 1)) -> jax.Array:
    """Maximum over overlapping 3x3 windows: (B, H, W, C) -> (B, ceil(H/stride), ceil(W/stride), C).

    `padding` is that before and behind both dimensions. (0, 0) loses what fills no window; (0, 1) pads, with
    stride 2, only where it would be lost.
    """
    around = ((0, 0), padding, padding, (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), around)


def average_pool_3x3(x: jax.Array) -> jax.Array:
    """Mean over 3x3 windows with stride 1, zeros around the image counted: (B, H, W, C) -> (B, H, W, C)."""
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME")


def average_pool_2x2(x: jax.Array) -> jax.Array:
    """Mean over 2x2 windows that do not overlap: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    Windows at the end of an odd height or width have fewer pixels, not zeros.
    """
    return nnx.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
