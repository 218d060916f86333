"""Sharpness, Gaussian blur and Gaussian noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_number,
    check_probability,
    check_range,
    compute_dtype,
    computed_once,
    image_of,
    per_image,
    to_dtype,
)
from jaxaccel.data.augment.exact import STEPS, drawn_from, on_grid
from jaxaccel.data.augment.keys import example_keys, uniforms


def smoothed(image: jax.Array) -> jax.Array:
    """Pillow's ImageFilter.SMOOTH: a 3x3 mean in which the center counts five times; the outermost pixels stay.

    Returns:
      uint8 for uint8 (rounded), else the dtype in which pixels are computed.
    """
    _, height, width, _ = image.shape
    integers = image.dtype == jnp.uint8
    pixels = image.astype(jnp.int32 if integers else compute_dtype(image.dtype))
    if min(height, width) < 3:
        return image if integers else pixels
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels[:, 1:-1, 1:-1]
    # (x * 20165) >> 18 is x // 13 for x up to 2**14: multiplication is vectorized, division is not.
    inner = ((total + 6) * 20165) >> 18 if integers else total / 13
    inner = jnp.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0)))
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    result = jnp.where(border, pixels, inner)
    return result.astype(jnp.uint8) if integers else result


def sharpened(image: jax.Array, factor: jax.Array) -> jax.Array:
    """``smooth + factor * (image - smooth)``, clipped to the range: 0 smooths, 1 changes nothing.

    Args:
      image: (B, H, W, C) uint8, or floating point in [0, 1].
      factor: (B,) float32, multiples of 2**-12.
    """
    smooth = smoothed(image)
    if image.dtype == jnp.uint8:
        steps = per_image((factor * 4096).astype(jnp.int32))
        base = smooth.astype(jnp.int32)
        result = (base * 4096 + steps * (image.astype(jnp.int32) - base) + 2048) >> 12
        return jnp.clip(result, 0, 255).astype(jnp.uint8)
    result = smooth + per_image(factor) * (image.astype(smooth.dtype) - smooth)
    return jnp.clip(result, 0, 1).astype(image.dtype)


@checked
def sharpness(key: jax.Array, batch: Batch, *, strength: float) -> Batch:
    """Moves each image away from a smoothed one, or toward it, by a factor in [max(0, 1 - strength), 1 + strength].

    The definition is that of Pillow's ImageEnhance.Sharpness. Floating-point images hold [0, 1].

    Raises:
      UserError: the strength is not in [0, 8], or the batch has no usable image.
    """
    image = image_of(batch, "sharpness")
    check_number(strength, "strength", 0, 8, "sharpness")
    low = max(0.0, 1 - strength)
    factor = on_grid(low, 1 + strength - low, uniforms(key, batch, 1)[:, 0])
    return {**batch, "image": sharpened(image, factor)}


def gaussian_weights(sigma: tuple[float, float], radius: int) -> np.ndarray:
    """Normalized weights of the center and of each distance up to ``radius``, for evenly spaced sigmas.

    Returns:
      (STEPS + 1, radius + 1) float32. Where sigma is 0 the center has all the weight.
    """
    sigmas = np.linspace(*sigma, STEPS + 1)[:, None]
    weights = np.exp(-0.5 * (np.arange(radius + 1) / np.maximum(sigmas, 1e-3)) ** 2)
    return (weights / (2 * weights.sum(1, keepdims=True) - 1)).astype(np.float32)


def blurred(key: jax.Array, image: jax.Array, weights: jax.Array) -> jax.Array:
    """Images filtered along both axes by symmetric kernels; at the border they are mirrored.

    Args:
      key: of the operation; see `batch.computed_once`.
      image: (B, H, W, C).
      weights: (B, radius + 1) float32, of the center and of the distances; see `gaussian_weights`.
    """
    radius = weights.shape[1] - 1
    result = image.astype(compute_dtype(image.dtype))
    for axis in (1, 2):
        size = image.shape[axis]
        around = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(result, around, mode="symmetric")

        def moved(start: int, padded: jax.Array = padded, axis: int = axis, size: int = size) -> jax.Array:
            return jax.lax.slice_in_dim(padded, start, start + size, axis=axis)

        result = per_image(weights[:, 0]) * moved(radius)
        for distance in range(1, radius + 1):
            result += per_image(weights[:, distance]) * (moved(radius - distance) + moved(radius + distance))
        result = computed_once(
            key, result
        )  # else the second pass would repeat the first for each of its terms
    return to_dtype(result, image.dtype)


@checked
def gaussian_blur(
    key: jax.Array, batch: Batch, *, sigma: tuple[float, float] = (0.1, 2.0), probability: float = 1.0
) -> Batch:
    """Blurs each image, with the given probability, by a Gaussian whose width is uniform between two bounds.

    The kernel ends at three times the upper bound; beyond the border lies the mirror image.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      sigma: (lowest, highest) standard deviation in pixels.
      probability: of a change.

    Raises:
      UserError: sigma is not two numbers with 0 <= lowest <= highest <= 32, the probability not in [0, 1], or the
        batch has no usable image.
    """
    image = image_of(batch, "gaussian_blur")
    check_range(sigma, "sigma", 0, 32, "gaussian_blur")
    check_probability(probability, "gaussian_blur")
    draws = uniforms(key, batch, 2)
    weights = drawn_from(gaussian_weights(sigma, math.ceil(3 * sigma[1])), draws[:, 0])
    new = blurred(key, image, weights)
    return {**batch, "image": jnp.where(per_image(draws[:, 1] < probability), new, image)}


@checked
def gaussian_noise(key: jax.Array, batch: Batch, *, strength: float, probability: float = 1.0) -> Batch:
    """Adds normal noise of standard deviation ``strength`` to each value, with the given probability.

    Draws are among 65,536 quantiles, thus within 4.3 standard deviations. The strength is a share of the range: of 255
    for uint8, of 1 for floating point; results are clipped to the range.

    Raises:
      UserError: the strength is not in [0, 1], the probability not in [0, 1], or the batch has no usable image.
    """
    image = image_of(batch, "gaussian_noise")
    check_number(strength, "strength", 0, 1, "gaussian_noise", " (a share of the range)")
    from scipy.special import ndtri  # JAX itself requires SciPy

    check_probability(probability, "gaussian_noise")
    largest = 255 if image.dtype == jnp.uint8 else 1
    quantiles = (ndtri((np.arange(65536) + 0.5) / 65536) * strength * largest).astype(np.float32)
    keys = example_keys(key, batch)

    def noise(key: jax.Array) -> jax.Array:
        place = jax.random.bits(jax.random.fold_in(key, 1), image.shape[1:], jnp.uint16).astype(jnp.int32)
        return jnp.asarray(quantiles).at[place].get(mode="promise_in_bounds")

    new = jnp.clip(image.astype(compute_dtype(image.dtype)) + jax.vmap(noise)(keys), 0, largest)
    chosen = uniforms(key, batch, 1)[:, 0] < probability
    return {**batch, "image": jnp.where(per_image(chosen), to_dtype(new, image.dtype), image)}
