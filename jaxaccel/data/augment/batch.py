"""What all augmentations share: batches, checks of options, dtypes of pixels."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxaccel.errors import UserError

Batch = Mapping[str, jax.Array]
"""The arrays of a batch by name, examples along their first axes: ``image``, ``label``, ``index``, ``epoch``."""
Augmentation = Callable[[jax.Array, Batch], Batch]
"""A pure function of a key and a batch that returns the augmented batch."""


def image_of(batch: Batch, operation: str) -> jax.Array:
    """``batch["image"]``, or a ``UserError`` that names the operation which cannot use it."""
    if "image" not in batch:
        found = ", ".join(sorted(batch)) or "nothing"
        raise UserError(f"{operation} needs batch['image'], but the batch has {found}")
    return checked(batch["image"], operation)


def checked(image: Any, operation: str) -> Any:
    """``image``, an array or its shape and dtype, or a ``UserError`` where it is no batch of images."""
    if len(image.shape) != 4:
        raise UserError(f"{operation} needs images of shape (B, height, width, channels), not {image.shape}")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(f"{operation} needs uint8 or floating-point images, not {image.dtype}")
    return image


def check_number(value: float, name: str, low: float, high: float, operation: str, meaning: str = "") -> None:
    """A ``UserError`` unless ``value`` is a number with low <= value <= high; ``meaning`` says of what."""
    if not isinstance(value, Real) or not low <= value <= high:
        raise UserError(
            f"{operation}: {name} must be a number in [{low:g}, {high:g}]{meaning}, not {value!r}"
        )


def check_probability(probability: float, operation: str) -> None:
    """A ``UserError`` unless ``probability`` lies in [0, 1]."""
    check_number(probability, "probability", 0, 1, operation)


def check_range(bounds: tuple[float, float], name: str, low: float, high: float, operation: str) -> None:
    """A ``UserError`` unless ``bounds`` is (lowest, highest) with low <= lowest <= highest <= high."""
    pair = isinstance(bounds, Sequence) and len(bounds) == 2 and all(isinstance(n, Real) for n in bounds)
    if not pair or not low <= bounds[0] <= bounds[1] <= high:
        raise UserError(
            f"{operation}: {name} must be (lowest, highest), {low:g} <= lowest <= highest <= {high:g}, not {bounds!r}"
        )


def fill_value(fill: float, dtype: jnp.dtype, operation: str) -> jax.Array:
    """``fill`` as a scalar of the image's dtype, or a ``UserError`` if it does not fit."""
    if dtype == jnp.uint8:
        if not (isinstance(fill, Real) and 0 <= fill <= 255 and fill == int(fill)):
            raise UserError(
                f"{operation}: fill of uint8 images must be a whole number from 0 to 255, not {fill!r}"
            )
    elif not (isinstance(fill, Real) and abs(fill) <= float(jnp.finfo(dtype).max)):
        raise UserError(f"{operation}: fill of {dtype} images must be a finite number, not {fill!r}")
    return jnp.asarray(fill, dtype)


def compute_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The floating-point dtype in which pixels are computed: float32, or float64 as it is."""
    return jnp.promote_types(dtype, jnp.float32)


def to_dtype(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Floating-point pixels back in the image's dtype; uint8 is rounded to nearest (even) and clipped."""
    if dtype == jnp.uint8:
        return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)
    return values.astype(dtype)


def to_levels(image: jax.Array) -> jax.Array:
    """Images as 8-bit levels, uint8: floating-point ones hold [0, 1]."""
    if image.dtype == jnp.uint8:
        return image
    return to_dtype(image.astype(compute_dtype(image.dtype)) * 255, jnp.dtype(jnp.uint8))


def from_levels(levels: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`to_levels` undone."""
    return levels if dtype == jnp.uint8 else (levels.astype(compute_dtype(dtype)) / 255).astype(dtype)


def per_image(values: jax.Array) -> jax.Array:
    """(B,) as (B, 1, 1, 1), to be combined with images."""
    return values[:, None, None, None]


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
    """``table[place]`` for each example; ``place`` is (B, ...) integers, within bounds."""
    return along_batch(lambda place: jnp.asarray(table).at[place].get(mode="promise_in_bounds"), place)


def computed_once(key: jax.Array, image: jax.Array) -> jax.Array:
    """The image (or matrix); on the CPU behind a conditional that XLA cannot fuse into what comes next.

    XLA:CPU would otherwise repeat a whole resampling or filter, unvectorized, for each use that a following operation
    makes of a pixel (50 times slower before ``mixup``), and it drops ``optimization_barrier`` before it fuses.
    Both branches return the image, so it does not matter which way the key's bits decide.
    """
    return jax.lax.platform_dependent(key, image, cpu=_behind_a_conditional, default=lambda key, image: image)


def _behind_a_conditional(key: jax.Array, image: jax.Array) -> jax.Array:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return jax.lax.cond(
        key.ravel()[0] % 2 == 0, lambda image: image, lambda image: image[:, ::-1][:, ::-1], image
    )
