"""Parts of images erased: cutout and random erasing."""

from numbers import Integral
from typing import Literal

import jax
import jax.numpy as jnp

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_probability,
    check_range,
    fill_value,
    image_of,
    per_image,
)
from jaxaccel.data.augment.crop import MAX_ATTEMPTS, first_fitting
from jaxaccel.data.augment.keys import example_keys, uniforms
from jaxaccel.errors import UserError


def inside(
    top: jax.Array, left: jax.Array, tall: jax.Array | int, broad: jax.Array | int, height: int, width: int
) -> jax.Array:
    """Which pixels lie in a box: (height, width) bool, or (B, height, width, 1) for boxes of shape (B, 1, 1, 1)."""
    rows, columns = jnp.arange(height, dtype=jnp.int32)[:, None], jnp.arange(width, dtype=jnp.int32)
    if top.ndim:
        rows, columns = rows[..., None], columns[:, None]
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + broad)


@checked
def cutout(key: jax.Array, batch: Batch, *, size: int, fill: float = 0) -> Batch:
    """Erases a square around a random pixel (cutout: DeVries & Taylor 2017, arXiv:1708.04552).

    The center may be any pixel, so part of the square may lie outside the image, as in the paper. The square
    spans ``[center - size // 2, center - size // 2 + size)`` on both axes and takes the value ``fill``, given
    in the units of the image.

    Raises:
      UserError: the size is negative or no integer, ``fill`` does not fit the dtype, or the batch has no
        usable image.
    """
    image = image_of(batch, "cutout")
    if not isinstance(size, Integral) or size < 0:
        raise UserError(f"cutout: size must be a whole number of pixels >= 0, not {size!r}")
    value = fill_value(fill, image.dtype, "cutout")
    _, height, width, _ = image.shape

    def square(key: jax.Array) -> jax.Array:
        center = jax.random.randint(key, (2,), 0, jnp.array([height, width], jnp.int32), jnp.int32)
        top, left = center - size // 2
        return inside(top, left, size, size, height, width)

    erased = jax.vmap(square)(example_keys(key, batch))[..., None]
    return {**batch, "image": jnp.where(erased, value, image)}


@checked
def random_erasing(
    key: jax.Array,
    batch: Batch,
    *,
    probability: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: float | Literal["noise"] = 0,
) -> Batch:
    """Erases a random box of each image, with the given probability (Zhong et al. 2020, arXiv:1708.04896).

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      probability: of a change.
      scale: (lowest, highest) share of the image's area; uniform.
      ratio: (lowest, highest) width over height; log-uniform. Ten boxes are drawn and the first that fits into the
        image is taken; where none does, nothing is erased.
      fill: a value in the units of the image, or "noise": uniform over the range of the dtype (floating point: [0, 1]).

    Raises:
      UserError: an option is out of range, or the batch has no usable image.
    """
    image = image_of(batch, "random_erasing")
    check_probability(probability, "random_erasing")
    check_range(scale, "scale", 0, 1, "random_erasing")
    check_range(ratio, "ratio", 1 / 16, 16, "random_erasing")
    if isinstance(fill, str) and fill != "noise":
        raise UserError(f"random_erasing: fill must be a number or 'noise', not {fill!r}")
    _, height, width, _ = image.shape
    draws = uniforms(key, batch, 1 + 4 * MAX_ATTEMPTS)
    box = first_fitting(draws[:, 1:], height, width, scale, ratio, otherwise=(0, 0, 0, 0))
    top, left, tall, broad = (per_image(part) for part in box)
    erased = inside(top, left, tall, broad, height, width) & per_image(draws[:, 0] < probability)
    value = _noise(key, batch, image) if fill == "noise" else fill_value(fill, image.dtype, "random_erasing")
    return {**batch, "image": jnp.where(erased, value, image)}


def _noise(key: jax.Array, batch: Batch, image: jax.Array) -> jax.Array:
    keys = example_keys(jax.random.fold_in(key, 1), batch)
    levels = jax.vmap(lambda key: jax.random.bits(key, image.shape[1:], jnp.uint8))(keys)
    return levels if image.dtype == jnp.uint8 else (levels.astype(jnp.float32) / 255).astype(image.dtype)
