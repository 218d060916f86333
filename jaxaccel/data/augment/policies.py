"""AutoAugment, RandAugment, TrivialAugment, AugMix and DeiT III's 3-Augment.

Each image draws operations of its own, and still no branch is computed for images that drew another one: at each stage
of a policy every image goes through one resampling, one curve, one change of color and one sharpening, whose parameters
are those of no change wherever another operation was drawn. What an operation does is in `policy_tables`.

All but 3-Augment are defined on 8-bit levels; floating-point images hold [0, 1] and are rounded to levels.
"""

import math
from numbers import Integral
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import (
    Batch,
    check_number,
    check_range,
    compute_dtype,
    from_levels,
    image_of,
    look_up,
    per_image,
    to_dtype,
    to_levels,
)
from jaxaccel.data.augment.color import Recoloring, color_channels
from jaxaccel.data.augment.color_matrices import blending, gray
from jaxaccel.data.augment.exact import STEPS, drawn_from, fixed_point
from jaxaccel.data.augment.filters import blurred, gaussian_weights
from jaxaccel.data.augment.keys import uniforms
from jaxaccel.data.augment.mix import beta_quantiles
from jaxaccel.data.augment.policy_stage import stage
from jaxaccel.data.augment.policy_tables import (
    AUGMIX,
    AUTO,
    COLUMNS,
    ENHANCERS,
    OPERATIONS,
    POLICIES,
    RAND,
    TRIVIAL_WIDE,
    parameters,
    subpolicies,
)
from jaxaccel.data.augment.resample import Fill, Method, check_sampling
from jaxaccel.data.augment.tone import (
    solarized_image,
)
from jaxaccel.errors import UserError

DRAWN = len(OPERATIONS) - 1
"""The last operation, invert, is AutoAugment's alone."""


def _prepared(batch: Batch, operation: str, fill: Fill, method: Method) -> jax.Array:
    color_channels(batch, operation)
    image = image_of(batch, operation)
    check_sampling(fill, method, jax.ShapeDtypeStruct(image.shape, jnp.uint8), operation)
    return image


def _rows(table: np.ndarray, operation: jax.Array, level: jax.Array, negative: jax.Array) -> jax.Array:
    """The parameters (B, COLUMNS) of what was drawn, each (B,): numbers of operation and level, and the sign."""
    levels = table.shape[1]
    return look_up(table.reshape(-1, COLUMNS), (operation * levels + level) * 2 + negative.astype(jnp.int32))


def _below(draws: jax.Array, count: int) -> jax.Array:
    """Whole numbers in [0, count), from draws uniform in [0, 1)."""
    return jnp.minimum((draws * count).astype(jnp.int32), count - 1)


@checked
def auto_augment(
    key: jax.Array,
    batch: Batch,
    *,
    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet",
    fill: Fill = 0,
    method: Method = "bilinear",
) -> Batch:
    """One of the 25 learned pairs of operations for each image (AutoAugment: Cubuk et al. 2019, arXiv:1805.09501).

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point, gray or RGB.
      policy: the data set on which the pairs were learned.
      fill: what lies beyond the border of turned and moved images: a level from 0 to 255, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: an option is unknown, or the batch has no usable image.
    """
    image = _prepared(batch, "auto_augment", fill, method)
    if policy not in POLICIES:
        raise UserError(f"auto_augment: policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    table = parameters(AUTO, *image.shape[1:3])
    draws = uniforms(key, batch, 5)
    pair = look_up(subpolicies(policy), _below(draws[:, 0], 25))
    levels = to_levels(image)
    for i in range(2):
        operation, tenths, magnitude = (pair[:, i, j] for j in range(3))
        # In whole numbers: 0.6 as float32 is another number than 6 / 10.
        happens = _below(draws[:, 1 + 2 * i], 10) < tenths
        operation = jnp.where(happens, operation, OPERATIONS.index("identity"))
        rows = _rows(table, operation, magnitude, draws[:, 2 + 2 * i] < 0.5)
        levels = stage(key, levels, rows, fill=fill, method=method)
    return {**batch, "image": from_levels(levels, image.dtype)}


@checked
def rand_augment(
    key: jax.Array,
    batch: Batch,
    *,
    num_ops: int = 2,
    magnitude: int = 9,
    fill: Fill = 0,
    method: Method = "bilinear",
) -> Batch:
    """Operations drawn for each image, all of one magnitude (RandAugment: Cubuk et al. 2020, arXiv:1909.13719).

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point, gray or RGB.
      num_ops: operations one after another, drawn from 14.
      magnitude: from 0 to 30.
      fill: what lies beyond the border of turned and moved images: a level from 0 to 255, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: an option is out of range, or the batch has no usable image.
    """
    image = _prepared(batch, "rand_augment", fill, method)
    if not isinstance(num_ops, Integral) or num_ops < 0:
        raise UserError(f"rand_augment: num_ops must be a whole number >= 0, not {num_ops!r}")
    if not isinstance(magnitude, Integral) or not 0 <= magnitude < RAND.levels:
        raise UserError(f"rand_augment: magnitude must be a whole number from 0 to 30, not {magnitude!r}")
    table = parameters(RAND, *image.shape[1:3])
    draws = uniforms(key, batch, 2 * int(num_ops))
    levels = to_levels(image)
    for i in range(int(num_ops)):
        operation = _below(draws[:, 2 * i], DRAWN)
        rows = _rows(table, operation, jnp.full_like(operation, magnitude), draws[:, 2 * i + 1] < 0.5)
        levels = stage(key, levels, rows, fill=fill, method=method)
    return {**batch, "image": from_levels(levels, image.dtype)}


@checked
def trivial_augment(key: jax.Array, batch: Batch, *, fill: Fill = 0, method: Method = "bilinear") -> Batch:
    """One operation of any magnitude for each image (TrivialAugment, wide: Müller & Hutter 2021, arXiv:2103.10158).

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point, gray or RGB.
      fill: what lies beyond the border of turned and moved images: a level from 0 to 255, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: an option is unknown, or the batch has no usable image.
    """
    image = _prepared(batch, "trivial_augment", fill, method)
    table = parameters(TRIVIAL_WIDE, *image.shape[1:3])
    draws = uniforms(key, batch, 3)
    magnitude = _below(draws[:, 1], TRIVIAL_WIDE.levels)
    rows = _rows(table, _below(draws[:, 0], DRAWN), magnitude, draws[:, 2] < 0.5)
    levels = stage(key, to_levels(image), rows, fill=fill, method=method)
    return {**batch, "image": from_levels(levels, image.dtype)}


def gamma_quantiles(alpha: float) -> np.ndarray:
    """The 4096 quantiles of Gamma(alpha) at (i + 0.5) / 4096, float32 above 0; several, normalized, are Dirichlet."""
    from scipy.special import gammaincinv  # JAX itself requires SciPy

    quantiles = gammaincinv(alpha, (np.arange(STEPS) + 0.5) / STEPS)
    return np.maximum(quantiles, np.finfo(np.float32).tiny).astype(np.float32)


@checked
def augmix(
    key: jax.Array,
    batch: Batch,
    *,
    severity: int = 3,
    width: int = 3,
    alpha: float = 1.0,
    all_ops: bool = False,
    fill: Fill = 0,
    method: Method = "bilinear",
) -> Batch:
    """Mixes each image with several chains of operations on it (AugMix: Hendrycks et al. 2020, arXiv:1912.02781).

    The chains have one to three operations and Dirichlet(alpha) weights; their mixture and the image have weights of
    Beta(alpha, alpha). The loss of the paper, which compares the model's outputs for several mixtures, is not part of
    this.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, C), uint8 or floating point, gray or RGB.
      severity: magnitudes are uniform up to so many tenths of the highest, in hundredths from 0.01 on.
      width: chains.
      alpha: of both distributions.
      all_ops: draw color, contrast, brightness and sharpness too, which the paper leaves out, because its test images
        (ImageNet-C) are corrupted in such ways; thirteen operations instead of nine.
      fill: what lies beyond the border of turned and moved images: a level from 0 to 255, "edge" or "reflect".
      method: "nearest", "bilinear" or "bicubic".

    Raises:
      UserError: an option is out of range, or the batch has no usable image.
    """
    image = _prepared(batch, "augmix", fill, method)
    if not isinstance(severity, Integral) or not 1 <= severity <= 10:
        raise UserError(f"augmix: severity must be a whole number from 1 to 10, not {severity!r}")
    if not isinstance(width, Integral) or not 1 <= width <= 16:
        raise UserError(f"augmix: width must be a whole number from 1 to 16, not {width!r}")
    check_number(alpha, "alpha", 0.01, 1000, "augmix")
    table = parameters(AUGMIX, *image.shape[1:3])
    names = [name for name in OPERATIONS[1:DRAWN] if all_ops or name not in ENHANCERS]
    numbers = np.array([OPERATIONS.index(name) for name in names], np.int32)
    depth = 3
    chains = uniforms(jax.random.fold_in(key, 1), batch, width * (2 + 3 * depth)).reshape(
        -1, width, 2 + 3 * depth
    )
    gammas = jnp.stack([drawn_from(gamma_quantiles(alpha), chains[:, i, 0]) for i in range(width)], axis=1)
    shares = fixed_point(gammas / jnp.max(gammas, axis=1, keepdims=True), 20)  # whole numbers, summed exactly
    shares = shares.astype(jnp.float32) / jnp.sum(shares, axis=1, keepdims=True).astype(jnp.float32)
    levels = to_levels(image)

    def add_chain(total: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        draws, share = drawn
        result, operations = levels, 1 + _below(draws[:, 1], depth)
        for i in range(depth):
            kind, strength, sign = (draws[:, 2 + 3 * i + j] for j in range(3))
            operation = look_up(numbers, _below(kind, len(numbers)))
            operation = jnp.where(i < operations, operation, OPERATIONS.index("identity"))
            rows = _rows(table, operation, 1 + _below(strength, 10 * int(severity)), sign < 0.5)
            result = stage(key, result, rows, fill=fill, method=method)
        return total + per_image(share) * result.astype(total.dtype), None

    # A loop, so that the program is that of one chain.
    nothing = jnp.zeros_like(levels, dtype=compute_dtype(levels.dtype))
    mixture, _ = jax.lax.scan(add_chain, nothing, (chains.swapaxes(0, 1), shares.T))
    weight = drawn_from(beta_quantiles(alpha), uniforms(key, batch, 1)[:, 0])
    mixed = (1 - per_image(weight)) * levels.astype(mixture.dtype) + per_image(weight) * mixture
    return {**batch, "image": from_levels(to_dtype(mixed, levels.dtype), image.dtype)}


@checked
def three_augment(
    key: jax.Array, batch: Batch, *, sigma: tuple[float, float] = (0.1, 2.0), threshold: float = 0.5
) -> Batch:
    """Grayscale, solarize or blur, one of them for each image (3-Augment of DeiT III: Touvron et al. 2022).

    The paper (arXiv:2204.07118, section 3.2) has a `horizontal_flip` and a `color_jitter` of 0.3 besides.

    Args:
      key: the random key of this operation and step.
      batch: has "image", (B, H, W, 3), uint8 or floating point.
      sigma: of `gaussian_blur`.
      threshold: of `solarize`.

    Raises:
      UserError: an option is out of range, or the batch has no usable image (RGB).
    """
    color_channels(batch, "three_augment", needs_rgb=True)
    image = image_of(batch, "three_augment")
    check_range(sigma, "sigma", 0, 32, "three_augment")
    check_number(threshold, "threshold", 0, 1, "three_augment")
    draws = uniforms(key, batch, 2)
    choice = per_image(_below(draws[:, 0], 3))
    weights = drawn_from(gaussian_weights(sigma, math.ceil(3 * sigma[1])), draws[:, 1])
    zero = jnp.zeros(image.shape[0], jnp.float32)
    grayed = Recoloring(key, blending(zero, gray(3), np.zeros(3, np.float32)), mixing=True).apply(image)
    negated = solarized_image(image, threshold)
    new = jnp.where(choice == 0, grayed, jnp.where(choice == 1, negated, blurred(key, image, weights)))
    return {**batch, "image": new}
