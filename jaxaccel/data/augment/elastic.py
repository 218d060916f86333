"""Elastic deformation: a smooth random field of displacements."""

from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_number,
    computed_once,
    image_of,
)
from jaxaccel.data.augment.exact import fixed_point
from jaxaccel.data.augment.keys import example_keys
from jaxaccel.data.augment.resample import Fill, Method, check_sampling, fraction_bits, sample
from jaxaccel.errors import UserError

DRAW_BITS = 6
"""Displacements of control points are drawn in 64ths of a pixel."""

WEIGHT_BITS = 9
"""Weights of splines are multiples of 1/512; with two of them a displacement has 24 fraction bits."""

MAX_DISPLACEMENT = 64
"""Pixels; more would not fit into int32."""


def spline_weights(spacing: int) -> np.ndarray:
    """Cubic B-spline weights of four control points for each pixel between the inner two, (spacing, 4) int32."""
    t = np.arange(spacing) / spacing
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    rounded = np.round(np.stack(weights, axis=-1) / 6 * 2**WEIGHT_BITS).astype(np.int32)
    rounded[:, 1] += 2**WEIGHT_BITS - rounded.sum(axis=1, dtype=np.int32)  # a constant field stays constant
    return rounded


def spline(control: jax.Array, weights: np.ndarray, size: int, axis: int) -> jax.Array:
    """Control points along an axis, (.., n + 3, ..) int32, as a spline at ``size`` <= n * spacing pixels."""
    spacing, count = weights.shape[0], control.shape[axis] - 3
    control = jnp.moveaxis(control, axis, -1)
    terms = (control[..., k : k + count, None] * weights[:, k] for k in range(4))
    pixels = jnp.asarray(sum(terms)).reshape(*control.shape[:-1], count * spacing)[..., :size]
    return jnp.moveaxis(pixels, -1, axis)


@checked
def elastic(
    key: jax.Array,
    batch: Batch,
    *,
    displacement: float,
    spacing: int = 8,
    fill: Fill = 0,
    method: Method = "bilinear",
) -> Batch:
    """Deforms each image smoothly, by displacements drawn on a coarse grid (Simard et al. 2003; arXiv:1505.04597).

    Between the points of the grid lies a cubic B-spline, whose smoothing is about that of a Gaussian of 0.6 times the
    spacing.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      displacement: pixels by which a point of the grid moves at most, down and to the right; uniform.
      spacing: pixels between the points.
      fill: what lies beyond the border: a value in the units of the image, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: the displacement is not in [0, 64], the spacing no whole number above 0, ``fill`` or ``method`` is
        unknown or does not fit, or the batch has no usable image.
    """
    image = image_of(batch, "elastic")
    check_sampling(fill, method, jax.ShapeDtypeStruct(image.shape, image.dtype), "elastic")
    check_number(displacement, "displacement", 0, MAX_DISPLACEMENT, "elastic", " pixels")
    if not isinstance(spacing, Integral) or spacing < 1:
        raise UserError(f"elastic: spacing must be a whole number of pixels >= 1, not {spacing!r}")
    height, width, channels = image.shape[1:]
    bits = fraction_bits(height, width)
    weights = spline_weights(int(spacing))
    points = (2, -(-height // spacing) + 3, -(-width // spacing) + 3)

    def one_image(key: jax.Array, image: jax.Array) -> jax.Array:
        control = fixed_point(
            jax.random.uniform(key, points, jnp.float32, minval=-1) * displacement, DRAW_BITS
        )
        field = spline(spline(control, weights, height, 1), weights, width, 2)
        field = field >> (DRAW_BITS + 2 * WEIGHT_BITS - bits - 1)
        one = 1 << (bits + 1)
        row = field[0] + jnp.arange(height, dtype=jnp.int32)[:, None] * one
        column = field[1] + jnp.arange(width, dtype=jnp.int32) * one
        return sample(image, row, column, bits=bits, fill=fill, method=method).reshape(
            height, width, channels
        )

    return {**batch, "image": computed_once(key, jax.vmap(one_image)(example_keys(key, batch), image))}
