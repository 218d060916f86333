"""Augmentations of the features of sounds: ``batch["feature"]`` (B, T, bands) and ``batch["frames"]`` (B,) int32."""

import jax
import jax.numpy as jnp

from jaxaccel.core.options import CountOrZero, Share, checked
from jaxaccel.data.augment.batch import Batch
from jaxaccel.data.augment.keys import uniforms
from jaxaccel.errors import UserError


@checked
def mask_spectrogram(
    key: jax.Array,
    batch: Batch,
    *,
    time_masks: CountOrZero = 10,
    time_share: Share = 0.05,
    band_masks: CountOrZero = 2,
    band_width: CountOrZero = 27,
) -> Batch:
    """Hides stretches of time and of frequency (SpecAugment, Park et al. 2019, arXiv:1904.08779).

    They are filled with 0, which is the mean of normalized features. Widths are drawn evenly, from none to the
    widest, and then places. The defaults are those of Gulati et al. 2020 (arXiv:2005.08100), for 80 bands.

    Args:
      key: random key.
      batch: of features.
      time_masks: how many stretches of time are hidden.
      time_share: the widest of them, as a share of the frames of a sound.
      band_masks: how many stretches of frequency are hidden.
      band_width: the widest of them, in bands.

    Raises:
      UserError: an option is out of its range, or the batch holds no features.
    """
    if "feature" not in batch or "frames" not in batch:
        raise UserError(
            "mask_spectrogram needs features of sounds (it stands in augment_features), and the batch has "
            f"{', '.join(sorted(batch)) or 'nothing'}"
        )
    feature, frames = jnp.asarray(batch["feature"]), jnp.asarray(batch["frames"])
    length, bands = feature.shape[1:]
    draws = uniforms(key, batch, 2 * (time_masks + band_masks))
    draws = draws.reshape(len(feature), time_masks + band_masks, 2)
    # A thousandth of a frame more: 0.05 * 100 must not be 4 in float32.
    widest = jnp.floor(time_share * frames.astype(jnp.float32) + 1e-3).astype(jnp.int32)
    in_time = _hide(draws[:, :time_masks], widest, frames, length)
    all_bands = jnp.full_like(frames, bands)
    in_bands = _hide(draws[:, time_masks:], jnp.full_like(frames, min(band_width, bands)), all_bands, bands)
    hidden = in_time[:, :, None] | in_bands[:, None, :]
    return {**batch, "feature": jnp.where(hidden, 0, feature)}


def _hide(draws: jax.Array, widest: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """(B, size) bool: the places that some stretch covers, which all lie within the first `count`.

    Args:
      draws: (B, stretches, 2) in [0, 1), of the width and the place of each.
      widest: (B,) int, of each example.
      count: (B,) int, how many places each example has.
      size: how many the array has.
    """
    width = jnp.floor(draws[..., 0] * (widest[:, None] + 1)).astype(jnp.int32)
    start = jnp.floor(draws[..., 1] * (count[:, None] - width + 1)).astype(jnp.int32)
    places = jnp.arange(size, dtype=jnp.int32)
    covered = (places >= start[..., None]) & (places < (start + width)[..., None])
    return covered.any(1)
