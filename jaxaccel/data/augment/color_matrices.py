"""What changes of color are as matrices (B, C + 1, C + 1), for C channels in [0, 1] and a 1."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.data.augment.exact import STEPS, exact_sum

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R 601, as in Pillow's conversion to "L"."""


def scaling(factor: jax.Array, channels: int) -> jax.Array:
    """Matrices (B, C + 1, C + 1) that multiply colors by ``factor`` (B,)."""
    return blending(factor, np.zeros((channels, channels), np.float32), np.zeros(channels, np.float32))


def blending(factor: jax.Array, linear: jax.Array | np.ndarray, offset: jax.Array | np.ndarray) -> jax.Array:
    """Matrices (B, C + 1, C + 1) of ``factor * color + (1 - factor) * (linear @ color + offset)``.

    Args:
      factor: (B,) float32, multiples of 2**-12.
      linear: (C, C) or (B, C, C).
      offset: (C,) or (B, C).
    """
    channels = linear.shape[-1]
    factor = factor[:, None, None]
    square = exact_sum(factor * np.eye(channels, dtype=np.float32), (1 - factor) * linear)
    column = (1 - factor) * jnp.broadcast_to(offset, (factor.shape[0], channels))[..., None]
    return bordered(square, column)


def bordered(square: jax.Array, column: jax.Array) -> jax.Array:
    """(B, C, C) and (B, C, 1) as (B, C + 1, C + 1)."""
    channels = square.shape[-1]
    above = jnp.concatenate([square, column], axis=-1)
    last = jnp.zeros_like(above[:, :1]) + np.eye(channels + 1, dtype=np.float32)[-1:]
    return jnp.concatenate([above, last], axis=1)


def gray(channels: int) -> np.ndarray:
    """(C, C): every channel becomes the luma."""
    return np.ones((1, 1), np.float32) if channels == 1 else np.tile(LUMA, (3, 1))


def hue_matrices(turn: float) -> np.ndarray:
    """Rotations about the gray axis in YIQ by -turn to +turn of the circle, (STEPS + 1, 4, 4) float32.

    Luma stays. That is a linear map, unlike the shift in HSV that other libraries call by this name.
    """
    to_yiq = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float64)
    angles = 2 * np.pi * turn * np.linspace(-1, 1, STEPS + 1)
    rotations = np.zeros((STEPS + 1, 3, 3))
    rotations[:, 0, 0] = 1
    rotations[:, 1, 1] = rotations[:, 2, 2] = np.cos(angles)
    rotations[:, 1, 2], rotations[:, 2, 1] = -np.sin(angles), np.sin(angles)
    matrices = np.tile(np.eye(4), (STEPS + 1, 1, 1))
    matrices[:, :3, :3] = np.linalg.inv(to_yiq) @ rotations @ to_yiq
    return matrices.astype(np.float32)


def contrasting(factor: jax.Array, mean: jax.Array) -> jax.Array:
    """Matrices (B, C + 1, C + 1) of a contrast by ``factor`` (B,), for images of mean color ``mean`` (B, C)."""
    channels = mean.shape[1]
    return blending(factor, np.zeros((channels, channels), np.float32), luma(mean)[:, None])


def luma(color: jax.Array) -> jax.Array:
    """Of colors (B, C), (B,)."""
    return exact_sum(*(weight * color[:, i] for i, weight in enumerate(gray(color.shape[1])[0])))


def negative(channels: int) -> np.ndarray:
    """(C + 1, C + 1): one minus each color."""
    matrix = -np.eye(channels + 1, dtype=np.float32)
    matrix[:, -1] = 1
    return matrix
