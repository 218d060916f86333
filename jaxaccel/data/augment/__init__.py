"""Augmentation inside the jitted step: pure functions ``(key, batch, *, options) -> batch``.

An operation stands in a recipe as itself or as a ``functools.partial`` that fixes its options, and
``chain`` joins several into one::

    augment = chain(horizontal_flip, partial(pad_and_crop, padding=4), partial(cutout, size=8))
    batch = augment(jax.random.fold_in(key, step), batch)

``batch["image"]`` has shape (B, H, W, C) and dtype uint8 or floating point; the dtype stays, and so does the shape
(`random_resized_crop` and `resize` may change it). Operations on color and tone take floating-point images as [0, 1].
Options are plain Python values, checked when the operation is called (traced); a bad one raises ``UserError``.

What happens to an example depends on the key and the example's ``index`` alone: not on its place in the
batch, on the batch's size or on the number of devices. Mixing (``mixup``, ``cutmix``) is the one exception, and only
in part: its weight is keyed like everything else, its partner is the neighbor in the batch. ``alternating_flip``
depends on the index and the epoch, and not on the key.
"""

from jaxaccel.data.augment.batch import Augmentation, Batch
from jaxaccel.data.augment.chain import chain
from jaxaccel.data.augment.color import brightness, color_jitter, contrast, grayscale, hue, invert, saturation
from jaxaccel.data.augment.crop import (
    alternating_flip,
    horizontal_flip,
    pad_and_crop,
    random_resized_crop,
    vertical_flip,
)
from jaxaccel.data.augment.elastic import elastic
from jaxaccel.data.augment.erase import cutout, random_erasing
from jaxaccel.data.augment.filters import gaussian_blur, gaussian_noise, sharpness
from jaxaccel.data.augment.geometry import affine, perspective, rotate, scale, shear, translate
from jaxaccel.data.augment.keys import example_keys
from jaxaccel.data.augment.mix import cutmix, mixup, mixup_or_cutmix
from jaxaccel.data.augment.policies import augmix, auto_augment, rand_augment, three_augment, trivial_augment
from jaxaccel.data.augment.resize import resize
from jaxaccel.data.augment.tone import autocontrast, equalize, posterize, solarize

__all__ = [
    "Augmentation",
    "Batch",
    "affine",
    "alternating_flip",
    "augmix",
    "auto_augment",
    "autocontrast",
    "brightness",
    "chain",
    "color_jitter",
    "contrast",
    "cutmix",
    "cutout",
    "elastic",
    "equalize",
    "example_keys",
    "gaussian_blur",
    "gaussian_noise",
    "grayscale",
    "horizontal_flip",
    "hue",
    "invert",
    "mixup",
    "mixup_or_cutmix",
    "pad_and_crop",
    "perspective",
    "posterize",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
    "resize",
    "rotate",
    "saturation",
    "scale",
    "sharpness",
    "shear",
    "solarize",
    "three_augment",
    "translate",
    "trivial_augment",
    "vertical_flip",
]
