"""Image augmentation by flips, crops, erased squares and mixed pairs.

Every operation takes ``(key, batch, *, options)`` and returns a new batch. ``batch["image"]`` has shape
(B, H, W, C) and dtype uint8 or floating point; shape and dtype stay, and values stay within the range of the
input's (and of ``fill``). Options are plain Python numbers, checked when the operation is called (traced); a
bad one raises ``UserError``. Nothing here mixes examples but ``mixup``, so a batch sharded over devices needs
no communication.
"""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from scipy.special import betaincinv  # JAX itself requires SciPy

from jaxaccel.errors import UserError

Batch = Mapping[str, jax.Array]
Augmentation = Callable[[jax.Array, Batch], Batch]


def chain(*augmentations: Augmentation) -> Augmentation:
    """Joins augmentations, applied from left to right, into one.

    Each gets a key of its own, ``fold_in(key, position)``. An empty chain returns the batch as it is.

    Raises:
      UserError: an entry is not callable.
    """
    for augmentation in augmentations:
        if not callable(augmentation):
            raise UserError(
                f"chain takes functions (key, batch) -> batch, not {augmentation!r}; "
                "fix options with functools.partial"
            )

    def chained(key: jax.Array, batch: Batch) -> Batch:
        for position, augmentation in enumerate(augmentations):
            batch = augmentation(jax.random.fold_in(key, position), batch)
        return batch

    return chained


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One random key per example: ``fold_in(key, index)``.

    ``index`` is ``batch["index"]``, integers of shape (B,): the example's position in its data set. A batch
    without it is numbered 0..B-1.

    Returns:
      Keys of shape (B,), or (B, 2) where ``key`` is a raw uint32 key.
    """
    if "index" in batch:
        index = batch["index"]
    elif batch:
        index = jnp.arange(next(iter(batch.values())).shape[0])
    else:
        raise UserError("the batch is empty: it has neither an 'index' nor anything to count")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def image_of(batch: Batch, operation: str) -> jax.Array:
    """``batch["image"]``, or a ``UserError`` that names the operation which cannot use it."""
    if "image" not in batch:
        found = ", ".join(sorted(batch)) or "nothing"
        raise UserError(f"{operation} needs batch['image'], but the batch has {found}")
    image = batch["image"]
    if image.ndim != 4:
        raise UserError(f"{operation} needs images of shape (B, height, width, channels), not {image.shape}")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(f"{operation} needs uint8 or floating-point images, not {image.dtype}")
    return image


def fill_value(fill: float, dtype: jnp.dtype, operation: str) -> jax.Array:
    """``fill`` as a scalar of the image's dtype, or a ``UserError`` if it does not fit."""
    if dtype == jnp.uint8:
        if not (0 <= fill <= 255 and fill == int(fill)):
            raise UserError(
                f"{operation}: fill of uint8 images must be a whole number from 0 to 255, not {fill}"
            )
    elif not abs(fill) <= float(jnp.finfo(dtype).max):
        raise UserError(f"{operation}: fill of {dtype} images must be finite, not {fill}")
    return jnp.asarray(fill, dtype)


def to_dtype(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Floating-point pixels back in the image's dtype; uint8 is rounded to nearest (even) and clipped."""
    if dtype == jnp.uint8:
        return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)
    return values.astype(dtype)


def interpolate(first: jax.Array, second: jax.Array, weight: jax.Array) -> jax.Array:
    """``first + weight * (second - first)``: exactly ``first`` where the weight is 0 or both are equal."""
    return first + weight * (second - first)


def along_batch(function: Callable[[jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """``function(values)``, sharded like ``values`` (B, ...).

    Under explicit sharding (the meshes of ``jax.make_mesh``) slices and look-ups along a sharded axis have no
    sharding type of their own; the partitioner is told to find it, as it does for automatic axes.
    """
    sharding = jax.typeof(values).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        function = cast(Callable[..., jax.Array], jax.sharding.auto_axes(function, out_sharding=sharding))
    return function(values)


def look_up(table: np.ndarray, place: jax.Array) -> jax.Array:
    """``table[place]`` for each example; ``place`` is (B,) integers, within bounds."""
    return along_batch(lambda place: jnp.asarray(table).at[place].get(mode="promise_in_bounds"), place)


def horizontal_flip(key: jax.Array, batch: Batch, *, probability: float = 0.5) -> Batch:
    """Mirrors each image left to right with the given probability (Krizhevsky et al. 2012).

    Raises:
      UserError: the probability is not in [0, 1], or the batch has no usable image.
    """
    image = image_of(batch, "horizontal_flip")
    if not 0 <= probability <= 1:
        raise UserError(f"horizontal_flip: probability must lie in [0, 1], not {probability}")
    draws = jax.vmap(jax.random.uniform)(example_keys(key, batch))
    flip = (draws < probability)[:, None, None, None]
    return {**batch, "image": jnp.where(flip, image[:, :, ::-1], image)}


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
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), (height, width, channels))

    padded = jnp.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    return {**batch, "image": jax.vmap(crop)(padded, example_keys(key, batch))}


def cutout(key: jax.Array, batch: Batch, *, size: int, fill: float = 0) -> Batch:
    """Erases a square around a random pixel (cutout: DeVries & Taylor 2017, arXiv:1708.04552).

    The centre may be any pixel, so part of the square may lie outside the image, as in the paper. The square
    spans ``[centre - size // 2, centre - size // 2 + size)`` on both axes and takes the value ``fill``, given
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
        centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
        top, left = centre - size // 2
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
        return (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)

    erased = jax.vmap(square)(example_keys(key, batch))[..., None]
    return {**batch, "image": jnp.where(erased, value, image)}


def beta_quantiles(alpha: float) -> np.ndarray:
    """The 4096 quantiles of Beta(alpha, alpha) at (i + 0.5) / 4096, float32: drawing one draws a weight.

    A table rather than ``jax.random.beta``: that rejects in a loop until the last example is accepted, for which
    sharded examples would wait for one another. And powers and cosines, of which closed forms are made, differ
    in the last bit between batches of different sizes.
    """
    return betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096).astype(np.float32)


def neighbour(values: jax.Array) -> jax.Array:
    """``values`` (B, ...) rolled by one along the batch: between devices, one row goes to the next."""
    return along_batch(lambda values: jnp.roll(values, 1, axis=0), values)


def mixup(key: jax.Array, batch: Batch, *, alpha: float) -> Batch:
    """Mixes each image with its neighbour's (mixup: Zhang et al. 2018, arXiv:1710.09412).

    The partner of example i is example i - 1 of the batch (the batch rolled by one), and the weight
    w ~ Beta(alpha, alpha) is drawn per example: ``image = (1 - w) * image + w * partner``. The batch gains
    ``mix_label``, the partner's label (B,), and ``mix_weight``, w as (B,) float32, for
    ``loss = (1 - w) * loss(label) + w * loss(mix_label)``. Examples that ``batch["mask"]`` marks as padding
    are neither changed nor mixed into others. ``alpha=0`` mixes nothing (w = 0).

    Raises:
      UserError: alpha is not in [0, 1e6], the batch has no label or no usable image, or it is mixed already.
    """
    image = image_of(batch, "mixup")
    if not 0 <= alpha <= 1e6:
        raise UserError(f"mixup: alpha must lie in [0, 1e6], not {alpha}")
    if "label" not in batch:
        raise UserError("mixup needs batch['label']")
    if "mix_label" in batch:
        raise UserError("mixup stands twice in the augmentation; the batch is mixed already")

    if alpha == 0:
        weight = jnp.zeros(image.shape[:1], jnp.float32)
    else:
        quantiles = beta_quantiles(alpha)
        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(quantiles)))(example_keys(key, batch))
        weight = look_up(quantiles, place)
    if "mask" in batch:
        weight = jnp.where((batch["mask"] > 0) & (neighbour(batch["mask"]) > 0), weight, 0)
    compute_dtype = jnp.promote_types(image.dtype, jnp.float32)
    mixed = interpolate(
        image.astype(compute_dtype), neighbour(image).astype(compute_dtype), weight[:, None, None, None]
    )
    return {
        **batch,
        "image": to_dtype(mixed, image.dtype),
        "mix_label": neighbour(batch["label"]),
        "mix_weight": weight,
    }
