"""Images looked up at other places: nearest, bilinear or bicubic, by a matrix for each image or place by place.

Coordinates are fixed-point integers. In floating point the pixel index, ``floor(y)``, and the weight,
``y - floor(y)``, may be computed in two different fused loops; where one of them contracts a multiply-add and
the other does not, the two disagree near whole numbers and a pixel comes from the wrong place. Integers agree
everywhere: in every fusion, for every batch size, on every device.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxaccel.data.augment.batch import compute_dtype, fill_value, interpolate, to_dtype
from jaxaccel.data.augment.exact import fixed_point
from jaxaccel.errors import UserError

Method = Literal["nearest", "bilinear", "bicubic"]
Fill = float | Literal["edge", "reflect"]

MIN_SCALE = 1 / 16
"""Images shrink by 16 at most, which bounds the coordinates and thus sets the fixed-point precision."""

DENOMINATOR_BITS = 27
"""Fraction bits of a projective map's denominator, which stays below 5."""

PADDING = {"nearest": 1, "bilinear": 1, "bicubic": 3}
"""Pixels around the image of which the kernel may read; beyond, all is as the outermost of them."""


def check_sampling(fill: Fill, method: str, image: jax.ShapeDtypeStruct, operation: str) -> None:
    """A ``UserError`` unless ``fill`` and ``method`` are known and fit the images."""
    if not isinstance(method, str) or method not in PADDING:
        raise UserError(f"{operation}: method must be nearest, bilinear or bicubic, not {method!r}")
    if not isinstance(fill, str):
        fill_value(fill, image.dtype, operation)
    elif fill not in ("edge", "reflect"):
        raise UserError(f"{operation}: fill must be a number, 'edge' or 'reflect', not {fill!r}")
    elif fill == "reflect" and min(image.shape[1:3]) <= PADDING[method]:
        raise UserError(
            f"{operation}: fill='reflect' needs images of 4x4 pixels or more, not {image.shape[1:3]}"
        )


def fraction_bits(height: int, width: int) -> int:
    """Fraction bits of coordinates (in pixels) that int32 has room for: 19 at 32x32, 16 at 224x224.

    The two products of a coordinate together stay below ``(height + width) / (2 * MIN_SCALE)`` pixels,
    the translation below ``(height + width) / MIN_SCALE`` and the center below ``height + width``; one more
    bit is the sign, and one counts half pixels.
    """
    largest = 1.5 * (height + width) / MIN_SCALE + height + width
    return min(30 - math.ceil(math.log2(largest)), 22)  # 22: a weight is exact as a float32


def places(
    matrix: jax.Array, shape: tuple[int, int], source: tuple[int, int], bits: int, projective: bool
) -> tuple[jax.Array, jax.Array]:
    """Where in the input each output pixel lies.

    Args:
      matrix: (3, 3) float32 from output to input pixels (row, column, 1), each measured from its image's center.
      shape: height and width of the output.
      source: height and width of the input.
      bits: of `fraction_bits`.
      projective: whether the last row is other than (0, 0, 1).

    Returns:
      Rows (h, 1) or (h, w), and columns (1, w) or (h, w), int32 in units of ``2 ** -(bits + 1)`` pixels from the
      center of the first pixel, clipped to one and a half sizes of the input around it.
    """
    rows = (2 * jnp.arange(shape[0], dtype=jnp.int32) - (shape[0] - 1))[:, None]  # half pixels
    columns = (2 * jnp.arange(shape[1], dtype=jnp.int32) - (shape[1] - 1))[None, :]
    linear = fixed_point(jnp.clip(matrix[:2, :2], -1 / MIN_SCALE, 1 / MIN_SCALE), bits)
    far = sum(source) / MIN_SCALE
    shift = fixed_point(jnp.clip(matrix[:2, 2], -far, far), bits)
    found = [
        entries[0] * rows + entries[1] * columns + 2 * move
        for entries, move in zip(linear, shift, strict=True)
    ]
    if projective:
        # Numerators and denominators are integers, each rounded to float32 once and divided once. What is behind the
        # horizon, or almost, lies far outside.
        steepest = 4 / max(shape)
        last = fixed_point(jnp.clip(matrix[2, :2], -steepest, steepest) / 2, DENOMINATOR_BITS)
        denominator = last[0] * rows + last[1] * columns + (1 << DENOMINATOR_BITS)
        seen = denominator > 1 << (DENOMINATOR_BITS - 6)
        bound = float(sum(source)) * 2.0 ** (bits + 1)

        def divided(numerator: jax.Array) -> jax.Array:
            ratio = numerator.astype(jnp.float32) / jnp.maximum(denominator, 1).astype(jnp.float32)
            ratio = jnp.clip(ratio * 2.0**DENOMINATOR_BITS, -bound, bound)
            return jnp.round(jnp.where(seen, ratio, bound)).astype(jnp.int32)

        found = [divided(numerator) for numerator in found]
    one = 1 << (bits + 1)
    row, column = (part + (size - 1) * (one // 2) for part, size in zip(found, source, strict=True))
    return row, column


def sample(
    image: jax.Array,
    row: jax.Array,
    column: jax.Array,
    *,
    bits: int,
    fill: Fill = 0,
    method: Method = "bilinear",
) -> jax.Array:
    """One image (H, W, C) at the given places.

    Beyond the border lies the value ``fill``, the nearest pixel ("edge") or the mirror image ("reflect"; the border
    pixel is not repeated): SciPy's modes grid-constant, nearest and mirror.

    Args:
      image: uint8 or floating point.
      row: (h, w) int32, as `places` gives them.
      column: (h, w) int32.
      bits: of the places.
      fill: in the units of the image.
      method: the kernel: that of the nearest pixel, linear, or Keys' cubic with a = -1/2 (as Pillow).

    Returns:
      (h, w, C), the dtype of ``image``.
    """
    one = 1 << (bits + 1)
    height, width, channels = image.shape
    reach = (
        2 if method == "bicubic" else 1
    )  # places are clipped to so many pixels around: beyond, all is fill
    pad = PADDING[method]
    around = ((pad, pad), (pad, pad), (0, 0))
    if isinstance(fill, str):
        padded = jnp.pad(image, around, mode=fill)
    else:
        padded = jnp.pad(image, around, constant_values=fill_value(fill, image.dtype, "resampling"))
    pixels = padded.reshape((height + 2 * pad) * (width + 2 * pad), channels)
    dtype = compute_dtype(image.dtype)

    def neighbors(position: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """The lower neighbor, counted in the padded image, and the upper one's weight: (h * w,), (h * w, 1)."""
        if fill == "reflect":
            period = 2 * (size - 1) * one
            position = jnp.minimum(position % period, -position % period)
        if method == "nearest":
            position = (position + one // 2) & -one
        position = jnp.clip(position, -reach * one, (size - 1 + reach) * one).ravel()
        last = size - 1 + reach - (method != "nearest")
        lower = jnp.minimum(position >> (bits + 1), last)
        return lower + pad, ((position - lower * one).astype(dtype) / one)[:, None]

    row, down = neighbors(row, height)
    column, right = neighbors(column, width)
    corner = row * (width + 2 * pad) + column

    def pixel(rows: int, columns: int) -> jax.Array:
        # Narrow gathers along one axis fuse with the arithmetic; gathering windows is slower.
        place = corner + (rows * (width + 2 * pad) + columns)
        return pixels.at[place].get(mode="promise_in_bounds").astype(dtype)

    if method == "nearest":
        return pixel(0, 0).astype(image.dtype)
    if method == "bilinear":
        upper = interpolate(pixel(0, 0), pixel(0, 1), right)
        return to_dtype(interpolate(upper, interpolate(pixel(1, 0), pixel(1, 1), right), down), image.dtype)
    across, along = cubic_weights(right), cubic_weights(down)
    lines = [sum(across[j] * pixel(i - 1, j - 1) for j in range(4)) for i in range(4)]
    return to_dtype(jnp.asarray(sum(along[i] * lines[i] for i in range(4))), image.dtype)


def cubic_weights(fraction: jax.Array) -> list[jax.Array]:
    """Of the four neighbors, at the given fraction between the inner two (Keys 1981, a = -1/2)."""
    t = fraction
    return [
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ]
