"""One stage of a policy: for each image one of the operations of `policy_tables`, for the whole batch at once."""

import jax
import jax.numpy as jnp

from jaxaccel.data.augment.batch import computed_once, per_image
from jaxaccel.data.augment.color import Recoloring, mean_color
from jaxaccel.data.augment.color_matrices import blending, gray, luma, negative
from jaxaccel.data.augment.filters import sharpened
from jaxaccel.data.augment.moves import Resampling
from jaxaccel.data.augment.policy_tables import BLENDS, CURVES, INVERT
from jaxaccel.data.augment.resample import Fill, Method
from jaxaccel.data.augment.tone import (
    equalizing,
    extremes,
    histogram,
    posterized,
    solarized,
    stretched,
    through,
)


def stage(
    key: jax.Array, levels: jax.Array, rows: jax.Array, *, fill: Fill = 0, method: Method = "bilinear"
) -> jax.Array:
    """One operation on each image.

    Args:
      key: see `batch.computed_once`.
      levels: (B, H, W, C) uint8, C 1 or 3.
      rows: (B, COLUMNS) float32, of `policy_tables.parameters`.
      fill: what lies beyond the border.
      method: the kernel of resampling.
    """
    _, height, width, _ = levels.shape
    rows = computed_once(key, rows)  # else XLA:CPU draws and looks up for each pixel anew
    matrix = rows[:, :9].reshape(-1, 3, 3)
    levels = Resampling(key, matrix, (height, width), fill, method).apply(levels)

    def column(number: int) -> jax.Array:
        return per_image(rows[:, number])

    # No image has more than one of what follows, so that each starts from the same levels.
    ramp = jnp.arange(256, dtype=jnp.uint8)[:, None, None]
    curve = posterized(ramp, column(CURVES["bits"]).astype(jnp.int32))
    curve = solarized(curve, column(CURVES["threshold"]).astype(jnp.int32))
    curve = jnp.where(column(CURVES["autocontrast"]) > 0, stretched(ramp, *extremes(levels)), curve)
    curve = jnp.where(column(CURVES["equalize"]) > 0, equalizing(histogram(levels))[:, :, None], curve)[
        :, :, 0
    ]

    toned = through(computed_once(key, curve), levels)

    factor = rows[:, BLENDS["factor"]]
    is_toned = (column(CURVES["bits"]) < 8) | (column(CURVES["threshold"]) < 256)
    is_toned |= (column(CURVES["autocontrast"]) > 0) | (column(CURVES["equalize"]) > 0)
    is_sharpened = column(BLENDS["sharpness"]) > 0
    result = jnp.where(
        is_sharpened, sharpened(levels, factor), jnp.where(is_toned, toned, _recolored(key, levels, rows))
    )
    return computed_once(key, result)


def _recolored(key: jax.Array, levels: jax.Array, rows: jax.Array) -> jax.Array:
    channels = levels.shape[-1]
    linear = rows[:, BLENDS["color"], None, None] * gray(channels)
    offset = rows[:, BLENDS["contrast"], None] * luma(mean_color({"image": levels}, "policy"))[:, None]
    matrix = blending(rows[:, BLENDS["factor"]], linear, offset)
    matrix = jnp.where(rows[:, INVERT, None, None] > 0, negative(channels), matrix)
    return Recoloring(key, matrix, mixing=channels > 1).apply(levels)
