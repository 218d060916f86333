"""Brightness, contrast, saturation, hue, grayscale and inversion: one matrix in color space for each image.

Colors are gray or RGB; floating-point images hold [0, 1]. Each operation is affine in the color of a pixel, so
neighbors in a `chain` multiply their matrices and change, round and clip the pixels once. Contrast, which is about the
image's mean, needs no changed image for it: the mean of changed pixels is the changed mean.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_number,
    check_probability,
    compute_dtype,
    computed_once,
    image_of,
)
from jaxaccel.data.augment.color_matrices import blending, contrasting, gray, hue_matrices, negative, scaling
from jaxaccel.data.augment.deferred import Deferred, changed, image_like
from jaxaccel.data.augment.exact import drawn_from, exact_sum, fixed_point, on_grid, product, unit_fixed_point
from jaxaccel.data.augment.keys import uniforms
from jaxaccel.errors import UserError

COLOR_BITS = 16
"""Fraction bits of a matrix that multiplies uint8 pixels, as in Pillow's conversion to "L"."""

MAX_REACH = 60.0
"""Bound of a matrix's reach: sums of its products with 8-bit colors fit into int32, entries into `exact_sum`."""


@dataclasses.dataclass(frozen=True)
class Recoloring:
    """A `deferred.Change`: each pixel's color through its image's affine map."""

    key: jax.Array
    """Of the operation; see `batch.computed_once`."""
    matrix: jax.Array
    """(B, C + 1, C + 1) float32 for C channels in [0, 1] and a 1; the last row is (0, .., 0, 1)."""
    mixing: bool
    """Whether channels mix, or the matrix is a diagonal and an offset."""
    reach: float = MAX_REACH
    """No row of the matrix has magnitudes that sum to more; matrices that reach further together are not joined."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the input."""
        return shape

    def then(self, following: object) -> "Recoloring | None":
        """Both in one matrix, where its entries stay small enough."""
        if not isinstance(following, Recoloring) or self.reach * following.reach > MAX_REACH:
            return None
        matrix = product(following.matrix, self.matrix)
        mixing = self.mixing or following.mixing
        return Recoloring(self.key, matrix, mixing, self.reach * following.reach)

    def apply(self, image: jax.Array) -> jax.Array:
        """The pixels in their new colors, clipped to the range of the dtype."""
        matrix = computed_once(self.key, self.matrix)[:, :-1]
        if image.dtype == jnp.uint8:  # integers, which round the same everywhere
            pixels, whole = image.astype(jnp.int32), 1 << COLOR_BITS
            linear = fixed_point(matrix[..., :-1], COLOR_BITS)
            offset = fixed_point(matrix[..., -1] * 255, COLOR_BITS) + whole // 2
        else:
            pixels = image.astype(compute_dtype(image.dtype))
            linear, offset = matrix[..., :-1], matrix[..., -1]
        if self.mixing:
            parts = [
                pixels[..., i : i + 1] * linear[:, None, None, :, i] for i in range(image.shape[-1])
            ]  # each is (B, H, W, C)
        else:
            parts = [pixels * jnp.stack([linear[:, i, i] for i in range(image.shape[-1])], -1)[:, None, None]]
        total = jnp.asarray(sum(parts)) + offset[:, None, None]
        if image.dtype == jnp.uint8:
            return jnp.clip(total >> COLOR_BITS, 0, 255).astype(jnp.uint8)
        return jnp.clip(total, 0, 1).astype(image.dtype)


def mean_color(batch: Batch, operation: str) -> jax.Array:
    """The mean of each channel, (B, C) float32 in [0, 1], of the images as the changes so far make them."""
    if isinstance(batch, Deferred) and isinstance(batch.change, Recoloring):
        matrix, before = batch.change.matrix, _mean(batch.unchanged())
        terms = [matrix[:, :-1, i] * before[:, i, None] for i in range(before.shape[1])]
        return exact_sum(*terms, matrix[:, :-1, -1])
    return _mean(image_of(batch, operation))


def _mean(image: jax.Array) -> jax.Array:
    # Integers, whose sum does not depend on the order.
    pixels = image.shape[1] * image.shape[2]
    if image.dtype == jnp.uint8:
        scale, levels = 255.0, image.astype(jnp.int32)
    else:
        bits = min(30 - math.ceil(math.log2(pixels)), 22)
        scale = 2.0**bits
        levels = unit_fixed_point(jnp.clip(image.astype(jnp.float32), 0, 1), bits)
    return jnp.sum(levels, axis=(1, 2)).astype(jnp.float32) / (scale * pixels)


def color_channels(batch: Batch, operation: str, needs_rgb: bool = False) -> int:
    """How many channels the images have, or a ``UserError`` where the operation cannot use them."""
    channels = image_like(batch, operation).shape[3]
    if channels not in ((3,) if needs_rgb else (1, 3)):
        kind = "RGB images (3 channels)" if needs_rgb else "gray or RGB images (1 or 3 channels)"
        raise UserError(f"{operation} needs {kind}, not {channels} channels")
    return channels


def _factor(key: jax.Array, batch: Batch, strength: float, operation: str) -> jax.Array:
    check_number(strength, "strength", 0, 8, operation)
    low = max(0.0, 1 - strength)
    return on_grid(low, 1 + strength - low, uniforms(key, batch, 1)[:, 0])


@checked
def brightness(key: jax.Array, batch: Batch, *, strength: float) -> Batch:
    """Multiplies each image by a factor uniform in [max(0, 1 - strength), 1 + strength]; 0 would be black.

    Raises:
      UserError: the strength is not in [0, 8], or the batch has no usable image (gray or RGB).
    """
    channels = color_channels(batch, "brightness")
    factor = _factor(key, batch, strength, "brightness")
    return changed(batch, Recoloring(key, scaling(factor, channels), False, 1 + strength))


@checked
def contrast(key: jax.Array, batch: Batch, *, strength: float) -> Batch:
    """Moves each image away from its mean luma, or toward it, by a factor drawn as in `brightness`.

    Raises:
      UserError: the strength is not in [0, 8], or the batch has no usable image (gray or RGB).
    """
    color_channels(batch, "contrast")
    factor = _factor(key, batch, strength, "contrast")
    matrix = contrasting(factor, mean_color(batch, "contrast"))
    return changed(batch, Recoloring(key, matrix, False, 1 + 2 * strength))


@checked
def saturation(key: jax.Array, batch: Batch, *, strength: float) -> Batch:
    """Moves each pixel away from its own luma, or toward it, by a factor drawn as in `brightness`; 0 would be gray.

    Raises:
      UserError: the strength is not in [0, 8], or the batch has no usable image (RGB).
    """
    channels = color_channels(batch, "saturation", needs_rgb=True)
    factor = _factor(key, batch, strength, "saturation")
    matrix = blending(factor, gray(channels), np.zeros(channels, np.float32))
    return changed(batch, Recoloring(key, matrix, True, 1 + 2 * strength))


@checked
def hue(key: jax.Array, batch: Batch, *, strength: float) -> Batch:
    """Turns each image's colors about the gray axis, in YIQ, by up to ``strength`` of the circle each way.

    Raises:
      UserError: the strength is not in [0, 0.5], or the batch has no usable image (RGB).
    """
    color_channels(batch, "hue", needs_rgb=True)
    check_number(strength, "strength", 0, 0.5, "hue", " (shares of the circle)")
    turns = hue_matrices(strength)
    matrix = drawn_from(turns, uniforms(key, batch, 1)[:, 0])
    return changed(batch, Recoloring(key, matrix, True, float(np.abs(turns).sum(-1).max())))


@checked
def color_jitter(
    key: jax.Array,
    batch: Batch,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Batch:
    """`brightness`, `contrast`, `saturation` and `hue` of these strengths, in this order; the usual ones as one matrix.

    Raises:
      UserError: a strength is out of its operation's range, or the batch has no usable image (RGB; gray where only
        brightness and contrast change).
    """
    result = Deferred(batch)
    strengths = {
        _BRIGHTNESS: brightness, _CONTRAST: contrast, _SATURATION: saturation, _HUE: hue
    }  # fmt: skip
    for number, (operation, strength) in enumerate(strengths.items()):
        if strength:
            result = operation(jax.random.fold_in(key, number), result, strength=strength)
    return result if isinstance(batch, Deferred) else dict(result)


_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = (
    brightness,
    contrast,
    saturation,
    hue,
)  # not color_jitter's numbers


@checked
def grayscale(key: jax.Array, batch: Batch, *, probability: float = 0.1) -> Batch:
    """Replaces each image by its luma in all channels, with the given probability.

    Raises:
      UserError: the probability is not in [0, 1], or the batch has no usable image (RGB).
    """
    channels = color_channels(batch, "grayscale", needs_rgb=True)
    check_probability(probability, "grayscale")
    factor = (uniforms(key, batch, 1)[:, 0] >= probability).astype(jnp.float32)
    return changed(
        batch, Recoloring(key, blending(factor, gray(channels), np.zeros(channels, np.float32)), True, 1.0)
    )


@checked
def invert(key: jax.Array, batch: Batch, *, probability: float = 0.5) -> Batch:
    """Makes a negative of each image with the given probability.

    Raises:
      UserError: the probability is not in [0, 1], or the batch has no usable image (gray or RGB).
    """
    channels = color_channels(batch, "invert")
    check_probability(probability, "invert")
    inverted = uniforms(key, batch, 1)[:, 0] < probability
    matrix = jnp.where(
        inverted[:, None, None], jnp.asarray(negative(channels)), np.eye(channels + 1, dtype=np.float32)
    )
    return changed(batch, Recoloring(key, matrix, False, 2.0))
