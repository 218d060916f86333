"""Flips and crops: pixels move as they are, except in the random-resized crop."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_probability,
    check_range,
    image_of,
)
from jaxaccel.data.augment.deferred import changed, image_like
from jaxaccel.data.augment.exact import STEPS, drawn_from, stacked
from jaxaccel.data.augment.keys import example_index, example_keys, uniforms
from jaxaccel.data.augment.moves import Mirroring, Resampling
from jaxaccel.data.augment.resample import MIN_SCALE, Fill, Method, check_sampling
from jaxaccel.errors import UserError

MAX_ATTEMPTS = 10
"""Boxes drawn for an image; the first that fits into it is taken."""


@checked
def horizontal_flip(key: jax.Array, batch: Batch, *, probability: float = 0.5) -> Batch:
    """Mirrors each image left to right with the given probability (Krizhevsky et al. 2012).

    Raises:
      UserError: the probability is not in [0, 1], or the batch has no usable image.
    """
    image_like(batch, "horizontal_flip")
    check_probability(probability, "horizontal_flip")
    draws = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(example_keys(key, batch))
    return changed(batch, Mirroring(key, {2: draws < probability}))


@checked
def vertical_flip(key: jax.Array, batch: Batch, *, probability: float = 0.5) -> Batch:
    """Mirrors each image top to bottom with the given probability.

    Raises:
      UserError: the probability is not in [0, 1], or the batch has no usable image.
    """
    image_like(batch, "vertical_flip")
    check_probability(probability, "vertical_flip")
    draws = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(example_keys(key, batch))
    return changed(batch, Mirroring(key, {1: draws < probability}))


@checked
def alternating_flip(key: jax.Array, batch: Batch, *, seed: int = 0) -> Batch:
    """Mirrors half of the images left to right, and in the next epoch the other half (Jordan 2024, arXiv:2404.00498).

    Every two consecutive epochs show both sides of each image. Which side comes first is a hash of the example's
    index and ``seed``; the key is not used. ``batch["epoch"]`` counts passes over the data set, integers of shape ()
    or (B,).

    Raises:
      UserError: the batch has no "epoch" or no usable image, or the seed does not fit 32 bits.
    """
    image_like(batch, "alternating_flip")
    if "epoch" not in batch:
        raise UserError("alternating_flip needs batch['epoch'], the number of the pass over the data; "
                        "without it use horizontal_flip")  # fmt: skip
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise UserError(f"alternating_flip: seed must be a whole number in [0, 2**32), not {seed!r}")
    first = jax.random.key(int(seed), impl="threefry2x32")
    draws = jax.vmap(lambda index: jax.random.bits(jax.random.fold_in(first, index), dtype=jnp.uint32))(
        example_index(batch)
    )
    mirrored = ((draws & 1).astype(jnp.int32) + batch["epoch"]) % 2 == 1
    return changed(batch, Mirroring(key, {2: mirrored}))


@checked
def pad_and_crop(
    key: jax.Array, batch: Batch, *, padding: int, mode: Literal["constant", "reflect"] = "constant"
) -> Batch:
    """Pads every side by ``padding`` pixels and cuts a window of the original size at a random place.

    The augmentation of He et al. 2016 (arXiv:1512.03385, section 4.2) with ``padding=4``. All
    ``(2 * padding + 1) ** 2`` places are equally likely. ``mode`` is ``"constant"`` (zeros) or ``"reflect"``
    (mirrored at the border pixel, which is not repeated).

    Raises:
      UserError: the padding is negative or no integer, the mode is unknown, ``"reflect"`` is asked for more
        padding than the image has pixels to mirror, or the batch has no usable image.
    """
    image = image_of(batch, "pad_and_crop")
    _, height, width, channels = image.shape
    if not isinstance(padding, Integral) or padding < 0:
        raise UserError(f"pad_and_crop: padding must be a whole number of pixels >= 0, not {padding!r}")
    if mode not in ("constant", "reflect"):
        raise UserError(f"pad_and_crop: mode must be 'constant' or 'reflect', not {mode!r}")
    if mode == "reflect" and padding >= min(height, width):
        raise UserError(
            f"pad_and_crop: reflecting {padding} pixels needs images larger than that, not {height}x{width}; "
            "use less padding or mode='constant'"
        )
    if padding == 0:
        return batch

    def crop(padded: jax.Array, key: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), (height, width, channels))

    padded = jnp.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    return {**batch, "image": jax.vmap(crop)(padded, example_keys(key, batch))}


def random_boxes(
    draws: jax.Array, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, ...]:
    """Boxes of random size in images: areas are uniform, ratios of width to height log-uniform, places uniform.

    Args:
      draws: (..., 4) float32 in [0, 1).
      height: of the images.
      width: of the images.
      area: (lowest, highest) share of the image's.
      ratio: (lowest, highest).

    Returns:
      Top, left, height and width, (...) int32, and whether the box fits, (...) bool.
    """
    shares = (np.arange(STEPS) + 0.5) / STEPS
    sides = np.sqrt(height * width * (area[0] + (area[1] - area[0]) * shares)).astype(np.float32)
    stretch = np.exp(0.5 * (np.log(ratio[0]) + np.log(ratio[1] / ratio[0]) * shares)).astype(np.float32)
    side, wider = drawn_from(sides, draws[..., 0]), drawn_from(stretch, draws[..., 1])
    tall, broad = jnp.round(side / wider).astype(jnp.int32), jnp.round(side * wider).astype(jnp.int32)
    fits = (tall > 0) & (tall <= height) & (broad > 0) & (broad <= width)
    # 16 bits of the draws, so that the product, of integers, is exact.
    place = (draws[..., 2:] * 65536).astype(jnp.int32)
    top = (place[..., 0] * jnp.clip(height - tall + 1, 1, 2**15)) >> 16
    left = (place[..., 1] * jnp.clip(width - broad + 1, 1, 2**15)) >> 16
    return top, left, tall, broad, fits


def first_fitting(
    draws: jax.Array,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    otherwise: tuple[int, int, int, int],
) -> list[jax.Array]:
    """The first of `MAX_ATTEMPTS` boxes that fits, else another one; draws are (B, 4 * MAX_ATTEMPTS).

    Returns:
      Top, left, height and width, (B,) int32 each.
    """
    *boxes, fits = random_boxes(draws.reshape(-1, MAX_ATTEMPTS, 4), height, width, area, ratio)
    first = fits & (jnp.cumsum(fits, axis=1) == 1)
    found = jnp.any(fits, axis=1)
    return [
        jnp.where(found, jnp.sum(jnp.where(first, part, 0), axis=1), fallback)
        for part, fallback in zip(boxes, otherwise, strict=True)
    ]


@checked
def random_resized_crop(
    key: jax.Array,
    batch: Batch,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    size: int | tuple[int, int] = 0,
    fill: Fill = "edge",
    method: Method = "bilinear",
) -> Batch:
    """Cuts a random box out of each image and resizes it (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Nothing is smoothed beforehand where the result is smaller than the box.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point.
      scale: (lowest, highest) share of the image's area; uniform.
      ratio: (lowest, highest) width over height of the box; log-uniform. Ten boxes are drawn; where none fits, the
        largest centered one of an allowed ratio is taken.
      size: of the output, one number or (height, width), a sixteenth of the input's or more; 0 keeps the input's.
      fill: what lies beyond the border: a value in the units of the image, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: an option is out of range, or the batch has no usable image.
    """
    image = image_like(batch, "random_resized_crop")
    check_sampling(fill, method, image, "random_resized_crop")
    check_range(scale, "scale", 0, 1, "random_resized_crop")
    check_range(ratio, "ratio", 1 / 16, 16, "random_resized_crop")
    _, height, width, _ = image.shape
    pair = size if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, Integral) and int(n) >= 0 for n in pair):
        raise UserError(f"random_resized_crop: size must be one or two whole numbers, not {size!r}")
    new = (int(pair[0]) or height, int(pair[1]) or width)
    if min(new[0] / height, new[1] / width) < MIN_SCALE:
        raise UserError(
            f"random_resized_crop: size {new[0]}x{new[1]} is less than a sixteenth of images of {height}x{width}; "
            "make them smaller first (resize)"
        )
    tall = height if width / height >= ratio[0] else round(width / ratio[0])
    broad = width if width / height <= ratio[1] else round(height * ratio[1])
    centered = ((height - tall) // 2, (width - broad) // 2, tall, broad)
    draws = uniforms(key, batch, 4 * MAX_ATTEMPTS)
    top, left, tall, broad = first_fitting(draws, height, width, scale, ratio, centered)
    # Doubled, the distance between two centers is a whole number.
    down = (2 * top + tall - height).astype(jnp.float32) / 2
    right = (2 * left + broad - width).astype(jnp.float32) / 2
    rows, columns = tall.astype(jnp.float32) / new[0], broad.astype(jnp.float32) / new[1]
    matrix = stacked([[rows, 0, down], [0, columns, right], [0, 0, 1]])
    return changed(batch, Resampling(key, matrix, new, fill, method))
