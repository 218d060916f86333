"""Rotation, scaling and translation as one affine matrix and one bilinear resampling.

Coordinates are fixed-point integers. In floating point the pixel index, ``floor(y)``, and the weight,
``y - floor(y)``, may be computed in two different fused loops; where one of them contracts a multiply-add and
the other does not, the two disagree near whole numbers and a pixel comes from the wrong place. Integers agree
everywhere: in every fusion, for every batch size, on every device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.augment.image import Batch, example_keys, fill_value, image_of, interpolate, look_up, to_dtype
from jaxaccel.errors import UserError

SMALLEST_SCALE = 1 / 16
"""Images shrink by 16 at most, which bounds the coordinates and thus sets the fixed-point precision."""


ANGLE_STEPS = 4096
"""Angles lie on a grid, so that their cosines can be computed beforehand."""


def directions(rotation: float) -> np.ndarray:
    """Cosine and sine of evenly spaced angles from -rotation to +rotation degrees, (ANGLE_STEPS + 1, 2).

    A table, since XLA's vectorised and scalar cosines differ in the last bit: the same example would come out
    differently in a batch of another size.
    """
    angles = np.radians(rotation) * np.linspace(-1, 1, ANGLE_STEPS + 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def fraction_bits(height: int, width: int) -> int:
    """Fraction bits of coordinates (in pixels) that int32 has room for: 19 at 32x32, 16 at 224x224.

    The two products of a coordinate together stay below ``(height + width) / (2 * SMALLEST_SCALE)`` pixels,
    the translation's two below ``(height + width) / SMALLEST_SCALE`` and the centre below
    ``height + width``; one more bit is the sign, and one counts half pixels.
    """
    largest = 1.5 * (height + width) / SMALLEST_SCALE + height + width
    return min(30 - math.ceil(math.log2(largest)), 22)  # 22: a weight is exact as a float32


def fixed_point(values: jax.Array, bits: int) -> jax.Array:
    """``values`` rounded to int32 multiples of ``2 ** -bits``."""
    return jnp.round(values * 2.0**bits).astype(jnp.int32)


def on_grid(lowest: np.ndarray | float, width: np.ndarray | float, draws: jax.Array) -> jax.Array:
    """``lowest + width * draws``, rounded to multiples of 2**-12.

    The sum is one of integers, and the result, an integer times a power of two, stays the same however the
    compiler reorders the multiplications that follow.
    """
    steps = fixed_point(jnp.float32(width) * draws, 12) + np.round(np.multiply(lowest, 4096)).astype(np.int32)
    return steps.astype(jnp.float32) / 4096


def affine_matrix(direction: jax.Array, scale: jax.Array, shift: jax.Array, bits: int) -> jax.Array:
    """The matrix that leads from output to input pixels, both measured from the image's centre.

    Rotation and scaling about the centre, then translation; the matrix is the inverse of that, since
    resampling asks for each output pixel where it comes from.

    Args:
      direction: (B, 2) float32, cosine and sine of the angle, counter-clockwise as seen on the screen.
      scale: (B,) float32, > 1 magnifies.
      shift: (B, 2) float32, pixels down and to the right.
      bits: fraction bits of the result.

    Returns:
      (B, 2, 3) int32 in units of ``2 ** -bits``: ``(row, column)_in = matrix @ (row, column, 1)_out``.
    """
    cosine, sine = direction[:, 0] / scale, direction[:, 1] / scale
    down, right = shift[:, 0], shift[:, 1]

    def fixed(values: jax.Array) -> jax.Array:
        return fixed_point(values, bits)

    # Each product is rounded before the sums, so that no sum of floats is left to contract.
    rows = [fixed(cosine), fixed(sine), -fixed(cosine * down) - fixed(sine * right)]
    columns = [-fixed(sine), fixed(cosine), fixed(sine * down) - fixed(cosine * right)]
    return jnp.stack([jnp.stack(rows, axis=-1), jnp.stack(columns, axis=-1)], axis=1)


def resample(image: jax.Array, matrix: jax.Array, *, bits: int, fill: float = 0) -> jax.Array:
    """Bilinear resampling of images (B, H, W, C) at the places that ``matrix`` gives (see ``affine_matrix``).

    The image is thought to go on beyond its border with the value ``fill``, also for interpolation (SciPy's
    ``mode="grid-constant"``, ``order=1``). Dtype and shape are kept.
    """
    _, height, width, channels = image.shape
    one = 1 << (bits + 1)  # one pixel; offsets from the centre are counted in half pixels
    row_offsets = (2 * jnp.arange(height) - (height - 1))[:, None]
    column_offsets = 2 * jnp.arange(width) - (width - 1)
    value = fill_value(fill, image.dtype, "affine")
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)
    compute_dtype = jnp.promote_types(image.dtype, jnp.float32)

    def source(entries: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Lower neighbour, counted in the padded image, and the upper one's weight: (H * W,), (H * W, 1)."""
        position = entries[0] * row_offsets + entries[1] * column_offsets + 2 * entries[2]
        # The centre is (size - 1) / 2; clipped to the padding, beyond which all is fill.
        position = jnp.clip(position + (size - 1) * (one // 2), -one, size * one).ravel()
        lower = jnp.minimum(position >> (bits + 1), size - 1)
        weight = (position - lower * one).astype(compute_dtype) / one
        return lower + 1, weight[:, None]

    def one_image(padded: jax.Array, matrix: jax.Array) -> jax.Array:
        row, row_weight = source(matrix[0], height)
        column, column_weight = source(matrix[1], width)
        pixels = padded.reshape((height + 2) * (width + 2), channels)
        corner = row * (width + 2) + column

        def neighbour(down: int, right: int) -> jax.Array:
            # Four narrow gathers along one axis fuse with the arithmetic; gathering 2x2 windows is slower.
            place = corner + (down * (width + 2) + right)
            return pixels.at[place].get(mode="promise_in_bounds").astype(compute_dtype)

        upper = interpolate(neighbour(0, 0), neighbour(0, 1), column_weight)
        lower = interpolate(neighbour(1, 0), neighbour(1, 1), column_weight)
        resampled = interpolate(upper, lower, row_weight).reshape(height, width, channels)
        return to_dtype(resampled, image.dtype)

    return jax.vmap(one_image)(padded, matrix)


def as_is(key: jax.Array, image: jax.Array) -> jax.Array:
    """The image."""
    del key
    return image


def computed_once(key: jax.Array, image: jax.Array) -> jax.Array:
    """The image, behind a conditional that XLA:CPU cannot fuse into what comes next.

    XLA:CPU would otherwise repeat the whole resampling, unvectorised, for each use that a following operation
    makes of a pixel (50 times slower before ``mixup``), and it drops ``optimization_barrier`` before it fuses.
    Both branches return the image, so it does not matter which way the key's bits decide.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return jax.lax.cond(
        key.ravel()[0] % 2 == 0, lambda image: image, lambda image: image[:, ::-1][:, ::-1], image
    )


def affine(
    key: jax.Array,
    batch: Batch,
    *,
    rotation: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    translation: float = 0.0,
    fill: float = 0,
) -> Batch:
    """Rotates and scales each image about its centre and moves it, in one bilinear resampling.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      rotation: degrees; the angle is uniform in [-rotation, rotation], in 4096 steps.
      scale: (lowest, highest); the magnification, the same on both axes, is uniform between them.
      translation: fraction of the height (down) and of the width (right); both are uniform in
        [-translation, translation] and need not be whole pixels.
      fill: value beyond the border, in the units of the image.

    Raises:
      UserError: rotation is not in [0, 180], translation not in [0, 1], scale not two numbers with
        1/16 <= lowest <= highest, ``fill`` does not fit the dtype, or the batch has no usable image.
    """
    image = image_of(batch, "affine")
    fill_value(fill, image.dtype, "affine")
    if not 0 <= rotation <= 180:
        raise UserError(f"affine: rotation must lie in [0, 180] degrees, not {rotation}")
    if not 0 <= translation <= 1:
        raise UserError(f"affine: translation must lie in [0, 1] (a fraction of the size), not {translation}")
    if len(scale) != 2 or not SMALLEST_SCALE <= scale[0] <= scale[1] < math.inf:
        raise UserError(f"affine: scale must be (lowest, highest), 1/16 <= lowest <= highest, not {scale}")
    _, height, width, _ = image.shape
    # Four numbers are drawn whatever the options: rotate, scale and translate see affine's draws.
    draws = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(example_keys(key, batch))
    direction = look_up(directions(rotation), (draws[:, 0] * (ANGLE_STEPS + 1)).astype(jnp.int32))
    magnification = on_grid(scale[0], scale[1] - scale[0], draws[:, 1])
    extent = translation * np.array([height, width])
    shift = on_grid(-extent, 2 * extent, draws[:, 2:])
    bits = fraction_bits(height, width)
    matrix = affine_matrix(direction, magnification, shift, bits)
    resampled = resample(image, matrix, bits=bits, fill=fill)
    return {**batch, "image": jax.lax.platform_dependent(key, resampled, cpu=computed_once, default=as_is)}


def rotate(key: jax.Array, batch: Batch, *, rotation: float, fill: float = 0) -> Batch:
    """``affine`` with a rotation alone: an angle uniform in [-rotation, rotation] degrees."""
    return affine(key, batch, rotation=rotation, fill=fill)


def scale(key: jax.Array, batch: Batch, *, scale: tuple[float, float], fill: float = 0) -> Batch:
    """``affine`` with a scaling alone: a magnification uniform between scale[0] and scale[1]."""
    return affine(key, batch, scale=scale, fill=fill)


def translate(key: jax.Array, batch: Batch, *, translation: float, fill: float = 0) -> Batch:
    """``affine`` with a translation alone: up to the given fraction of height and width each way."""
    return affine(key, batch, translation=translation, fill=fill)
