"""Rotation, scaling, translation, shear and perspective: a matrix for each image, one resampling for all.

Each operation draws a 3x3 matrix that leads from output to input pixels (row, column, 1), measured from the image's
center, since resampling asks for each output pixel where it comes from. Alone it resamples; in a `chain`, neighbors
with the same ``fill`` and ``method`` multiply their matrices and resample once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_number,
    check_probability,
    check_range,
)
from jaxaccel.data.augment.deferred import changed, image_like
from jaxaccel.data.augment.exact import directions, drawn_from, exact_sum, on_grid, stacked
from jaxaccel.data.augment.keys import uniforms
from jaxaccel.data.augment.moves import Resampling, composed
from jaxaccel.data.augment.resample import MIN_SCALE, Fill, Method, check_sampling


def rotation_and_scale(direction: jax.Array, scale: jax.Array) -> jax.Array:
    """Matrices (B, 3, 3) of a rotation and a magnification about the center.

    Args:
      direction: (B, 2) float32, cosine and sine of the angle, counter-clockwise as seen on the screen.
      scale: (B,) float32, > 1 magnifies.
    """
    cosine, sine = direction[:, 0] / scale, direction[:, 1] / scale
    return stacked([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])


def shift_matrix(shift: jax.Array) -> jax.Array:
    """Matrices (B, 3, 3) that move by ``shift``, (B, 2) float32 pixels down and to the right."""
    return stacked([[1, 0, -shift[:, 0]], [0, 1, -shift[:, 1]], [0, 0, 1]])


def affine_matrix(direction: jax.Array, scale: jax.Array, shift: jax.Array, size: int) -> jax.Array:
    """`rotation_and_scale`, then `shift_matrix`, of images of at most ``size`` pixels a side."""
    return composed(rotation_and_scale(direction, scale), shift_matrix(shift), size)


def perspective_matrix(corners: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices (B, 3, 3) that show the image in a quadrangle (Heckbert 1989, section 2.2.3, inverted).

    Args:
      corners: (B, 4, 2) float32, how far the top left, top right, bottom right and bottom left corners move inwards
        (down or up, right or left), as shares of height and width below 1/2, multiples of 2**-12.
      height: of the images.
      width: of the images.
    """
    outwards = jnp.array([[-1, -1], [-1, 1], [1, 1], [1, -1]], jnp.float32)
    # Corners of the quadrangle measured from the center in half sizes: differences and their products are exact.
    points = outwards * (1 - 2 * corners)
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = ((points[:, i, 0], points[:, i, 1]) for i in range(4))
    down, across = y0 - y1 + y2 - y3, x0 - x1 + x2 - x3
    determinant = exact_sum((x1 - x2) * (y3 - y2), -(x3 - x2) * (y1 - y2))
    g = exact_sum(across * (y3 - y2), -(x3 - x2) * down) / determinant
    h = exact_sum((x1 - x2) * down, -across * (y1 - y2)) / determinant
    # From the unit square, (u, v) to the right and down, to the quadrangle.
    a, b = exact_sum(x1, -x0, g * x1), exact_sum(x3, -x0, h * x3)
    d, e = exact_sum(y1, -y0, g * y1), exact_sum(y3, -y0, h * y3)
    # Its adjugate leads back, and 2u - 1, 2v - 1 are measured from the center again.
    u = [exact_sum(e, -y0 * h), exact_sum(x0 * h, -b), exact_sum(b * y0, -x0 * e)]
    v = [exact_sum(y0 * g, -d), exact_sum(a, -x0 * g), exact_sum(x0 * d, -a * y0)]
    w = [exact_sum(d * h, -e * g), exact_sum(b * g, -a * h), exact_sum(a * e, -b * d)]
    right = [exact_sum(2 * entry, -scale) for entry, scale in zip(u, w, strict=True)]
    downwards = [exact_sum(2 * entry, -scale) for entry, scale in zip(v, w, strict=True)]
    # Of (x, y, 1) so far; rows stand first in ours.
    rows = [[line[1], line[0], line[2]] for line in (downwards, right, w)]
    matrix = stacked(rows) / w[2][:, None, None]
    half = np.array([height, width, 2], np.float32) / 2
    return matrix * half[:, None] / half[None, :]


@checked
def affine(
    key: jax.Array,
    batch: Batch,
    *,
    rotation: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    translation: float = 0.0,
    fill: Fill = 0,
    method: Method = "bilinear",
) -> Batch:
    """Rotates and scales each image about its center and moves it, in one resampling.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      rotation: degrees; the angle is uniform in [-rotation, rotation], in 4096 steps.
      scale: (lowest, highest); the magnification, the same on both axes, is uniform between them.
      translation: fraction of the height (down) and of the width (right); both are uniform in
        [-translation, translation] and need not be whole pixels.
      fill: what lies beyond the border: a value in the units of the image, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: rotation is not in [0, 180], translation not in [0, 1], scale not two numbers with
        1/16 <= lowest <= highest <= 1024, ``fill`` does not fit the dtype, or the batch has no usable image.
    """
    image = image_like(batch, "affine")
    check_sampling(fill, method, image, "affine")
    check_number(rotation, "rotation", 0, 180, "affine", " degrees")
    check_number(translation, "translation", 0, 1, "affine", " (a fraction of the size)")
    check_range(scale, "scale", MIN_SCALE, 1024, "affine")
    _, height, width, _ = image.shape
    # Four numbers are drawn whatever the options: rotate, scale and translate see affine's draws.
    draws = uniforms(key, batch, 4)
    direction = drawn_from(directions(rotation), draws[:, 0])
    magnification = on_grid(scale[0], scale[1] - scale[0], draws[:, 1])
    extent = translation * np.array([height, width])
    shift = on_grid(-extent, 2 * extent, draws[:, 2:])
    matrix = affine_matrix(direction, magnification, shift, max(height, width))
    return changed(batch, Resampling(key, matrix, (height, width), fill, method))


@checked
def rotate(
    key: jax.Array, batch: Batch, *, rotation: float, fill: Fill = 0, method: Method = "bilinear"
) -> Batch:
    """``affine`` with a rotation alone: an angle uniform in [-rotation, rotation] degrees."""
    return affine(key, batch, rotation=rotation, fill=fill, method=method)


@checked
def scale(
    key: jax.Array, batch: Batch, *, scale: tuple[float, float], fill: Fill = 0, method: Method = "bilinear"
) -> Batch:
    """``affine`` with a scaling alone: a magnification uniform between scale[0] and scale[1]."""
    return affine(key, batch, scale=scale, fill=fill, method=method)


@checked
def translate(
    key: jax.Array, batch: Batch, *, translation: float, fill: Fill = 0, method: Method = "bilinear"
) -> Batch:
    """``affine`` with a translation alone: up to the given fraction of height and width each way."""
    return affine(key, batch, translation=translation, fill=fill, method=method)


@checked
def shear(
    key: jax.Array, batch: Batch, *, shear: float, fill: Fill = 0, method: Method = "bilinear"
) -> Batch:
    """Shears each image about its center, along its rows and then along its columns.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      shear: pixels by which neighboring rows (columns) move against each other; both are uniform in [-shear, shear].
      fill: what lies beyond the border: a value in the units of the image, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: shear is not in [0, 4], ``fill`` or ``method`` is unknown or does not fit, or the batch has no usable
        image.
    """
    image = image_like(batch, "shear")
    check_sampling(fill, method, image, "shear")
    check_number(shear, "shear", 0, 4, "shear", " pixels a pixel")
    _, height, width, _ = image.shape
    slope = on_grid(-shear, 2 * shear, uniforms(key, batch, 2))
    along_rows = stacked([[1, 0, 0], [slope[:, 0], 1, 0], [0, 0, 1]])
    along_columns = stacked([[1, slope[:, 1], 0], [0, 1, 0], [0, 0, 1]])
    matrix = composed(along_rows, along_columns, max(height, width))
    return changed(batch, Resampling(key, matrix, (height, width), fill, method))


@checked
def perspective(
    key: jax.Array,
    batch: Batch,
    *,
    distortion: float = 0.5,
    probability: float = 0.5,
    fill: Fill = 0,
    method: Method = "bilinear",
) -> Batch:
    """Shows each image, with the given probability, as seen from aslant: its corners move inwards.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      distortion: each corner moves by up to this share of half the height and, independently, of half the width.
      probability: of a change.
      fill: what lies beyond the border: a value in the units of the image, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: distortion is not in [0, 0.9], the probability not in [0, 1], ``fill`` or ``method`` is unknown or
        does not fit, or the batch has no usable image.
    """
    image = image_like(batch, "perspective")
    check_sampling(fill, method, image, "perspective")
    check_probability(probability, "perspective")
    check_number(distortion, "distortion", 0, 0.9, "perspective")
    _, height, width, _ = image.shape
    draws = uniforms(key, batch, 9)
    inwards = on_grid(0, distortion / 2, draws[:, 1:]).reshape(-1, 4, 2)
    inwards = jnp.where((draws[:, 0] < probability)[:, None, None], inwards, 0)
    matrix = perspective_matrix(inwards, height, width)
    return changed(batch, Resampling(key, matrix, (height, width), fill, method, projective=True))
