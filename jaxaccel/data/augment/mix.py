"""Pairs of examples mixed: mixup, cutmix, and each of them by chance.

The partner of example i is example i - 1 of the batch (the batch rolled by one). The batch gains ``mix_label``, the
partner's label (B,), and ``mix_weight``, the partner's share w as (B,) float32, for
``loss = (1 - w) * loss(label) + w * loss(mix_label)``. Examples that ``batch["mask"]`` marks as padding are neither
changed nor mixed into others.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    along_batch,
    check_number,
    check_probability,
    compute_dtype,
    image_of,
    interpolate,
    look_up,
    per_image,
    to_dtype,
)
from jaxaccel.data.augment.erase import inside
from jaxaccel.data.augment.exact import STEPS, drawn_from
from jaxaccel.data.augment.keys import example_keys, uniforms
from jaxaccel.errors import UserError


def beta_quantiles(alpha: float) -> np.ndarray:
    """The 4096 quantiles of Beta(alpha, alpha) at (i + 0.5) / 4096, float32: drawing one draws a weight.

    A table rather than ``jax.random.beta``: that rejects in a loop until the last example is accepted, for which
    sharded examples would wait for one another. And powers and cosines, of which closed forms are made, differ
    in the last bit between batches of different sizes.
    """
    from scipy.special import betaincinv  # JAX itself requires SciPy

    return betaincinv(alpha, alpha, (np.arange(STEPS) + 0.5) / STEPS).astype(np.float32)


def neighbor(values: jax.Array) -> jax.Array:
    """``values`` (B, ...) rolled by one along the batch: between devices, one row goes to the next."""
    return along_batch(lambda values: jnp.roll(values, 1, axis=0), values)


def _check(batch: Batch, operation: str, **alphas: float) -> jax.Array:
    image = image_of(batch, operation)
    for name, alpha in alphas.items():
        check_number(alpha, name, 0, 1e6, operation)
    if "label" not in batch:
        raise UserError(f"{operation} needs batch['label']")
    if "mix_label" in batch:
        raise UserError(f"{operation} stands twice in the augmentation; the batch is mixed already")
    return image


def _both_real(batch: Batch) -> jax.Array | bool:
    """Which examples and partners are no padding, (B,) bool."""
    return (batch["mask"] > 0) & (neighbor(batch["mask"]) > 0) if "mask" in batch else True


def _mixed(batch: Batch, image: jax.Array, weight: jax.Array) -> Batch:
    return {**batch, "image": image, "mix_label": neighbor(batch["label"]), "mix_weight": weight}


@checked
def mixup(key: jax.Array, batch: Batch, *, alpha: float) -> Batch:
    """Mixes each image with its neighbor's (mixup: Zhang et al. 2018, arXiv:1710.09412).

    The weight w ~ Beta(alpha, alpha) is drawn per example: ``image = (1 - w) * image + w * partner``. ``alpha=0``
    mixes nothing (w = 0). See the module for what the batch gains.

    Raises:
      UserError: alpha is not in [0, 1e6], the batch has no label or no usable image, or it is mixed already.
    """
    image = _check(batch, "mixup", alpha=alpha)
    weight = draw_mix_weight(key, batch, alpha)
    return _mixed(batch, _blended(image, weight), weight)


def draw_mix_weight(key: jax.Array, batch: Batch, alpha: float) -> jax.Array:
    """The share of each example's partner, (B,) float32 ~ Beta(alpha, alpha); 0 where either is padding."""
    if alpha == 0:
        weight = jnp.zeros(batch["label"].shape[:1], jnp.float32)
    else:
        quantiles = beta_quantiles(alpha)
        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(quantiles), jnp.int32))(
            example_keys(key, batch)
        )
        weight = look_up(quantiles, place)
    return jnp.where(_both_real(batch), weight, 0)


def _blended(image: jax.Array, weight: jax.Array) -> jax.Array:
    dtype = compute_dtype(image.dtype)
    mixed = interpolate(image.astype(dtype), neighbor(image).astype(dtype), per_image(weight))
    return to_dtype(mixed, image.dtype)


@checked
def cutmix(key: jax.Array, batch: Batch, *, alpha: float = 1.0) -> Batch:
    """Pastes a box of the neighbor's image into each (CutMix: Yun et al. 2019, arXiv:1905.04899).

    The box has the image's proportions, a share w ~ Beta(alpha, alpha) of its area, and any pixel as its center; what
    lies outside is cut off. ``mix_weight`` is the share of pixels that were pasted. ``alpha=0`` pastes nothing. See
    the module for what the batch gains.

    Raises:
      UserError: alpha is not in [0, 1e6], the batch has no label or no usable image, or it is mixed already.
    """
    image = _check(batch, "cutmix", alpha=alpha)
    pasted, weight = _box(key, batch, image, alpha)
    return _mixed(batch, jnp.where(pasted, neighbor(image), image), weight)


def _box(key: jax.Array, batch: Batch, image: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Which pixels are pasted, (B, H, W, 1) bool, and their share, (B,) float32."""
    count, height, width, _ = image.shape
    if alpha == 0:
        return jnp.zeros((count, 1, 1, 1), bool), jnp.zeros((count,), jnp.float32)
    draws = uniforms(key, batch, 3)
    side = drawn_from(np.sqrt(beta_quantiles(alpha)), draws[:, 0])
    real = _both_real(batch)
    edges = []
    for size, draw in ((height, draws[:, 1]), (width, draws[:, 2])):
        length = jnp.round(side * size).astype(jnp.int32)
        center = jnp.minimum((draw * size).astype(jnp.int32), size - 1)
        first = jnp.clip(center - length // 2, 0, size)
        last = jnp.clip(center - length // 2 + length, 0, size)
        edges.append((first, jnp.where(real, last - first, 0)))
    (top, tall), (left, broad) = edges
    pasted = inside(per_image(top), per_image(left), per_image(tall), per_image(broad), height, width)
    return pasted, (tall * broad).astype(jnp.float32) / (height * width)


@checked
def mixup_or_cutmix(
    key: jax.Array,
    batch: Batch,
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    cutmix_probability: float = 0.5,
) -> Batch:
    """`cutmix` with the given probability, else `mixup`, for each example; defaults as in DeiT (arXiv:2012.12877).

    Raises:
      UserError: an alpha is not in [0, 1e6], the probability not in [0, 1], the batch has no label or no usable image,
        or it is mixed already.
    """
    image = _check(batch, "mixup_or_cutmix", mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    check_probability(cutmix_probability, "mixup_or_cutmix")
    cut = uniforms(key, batch, 1)[:, 0] < cutmix_probability
    pasted, share = _box(jax.random.fold_in(key, 1), batch, image, cutmix_alpha)
    weight = draw_mix_weight(jax.random.fold_in(key, 2), batch, mixup_alpha)
    cut_image = jnp.where(pasted, neighbor(image), image)
    mixed = jnp.where(per_image(cut), cut_image, _blended(image, weight))
    return _mixed(batch, mixed, jnp.where(cut, share, weight))
