"""Augmentations of jaxaccel that are measured, with their arguments, and three usual policies."""

from functools import partial
from typing import Any

from jaxaccel import augment as ja

POLICIES: dict[str, Any] = {
    "CIFAR": ja.chain(ja.horizontal_flip, partial(ja.pad_and_crop, padding=4), partial(ja.cutout, size=8)),
    "Inception": ja.chain(
        ja.random_resized_crop,
        ja.horizontal_flip,
        partial(ja.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    ),
    "DeiT III": ja.chain(
        ja.random_resized_crop,
        ja.horizontal_flip,
        ja.three_augment,
        partial(ja.color_jitter, brightness=0.3, contrast=0.3, saturation=0.3),
    ),
}
OURS: dict[str, Any] = {
    "horizontal_flip": ja.horizontal_flip,
    "vertical_flip": ja.vertical_flip,
    "pad_and_crop": partial(ja.pad_and_crop, padding=4),
    "random_resized_crop": ja.random_resized_crop,
    "rotate": partial(ja.rotate, rotation=30),
    "rotate, bicubic": partial(ja.rotate, rotation=30, method="bicubic"),
    "translate": partial(ja.translate, translation=0.1),
    "affine": partial(ja.affine, rotation=15, scale=(0.8, 1.2), translation=0.1),
    "perspective": ja.perspective,
    "elastic": partial(ja.elastic, displacement=4, spacing=8),
    "brightness": partial(ja.brightness, strength=0.4),
    "contrast": partial(ja.contrast, strength=0.4),
    "saturation": partial(ja.saturation, strength=0.4),
    "hue": partial(ja.hue, strength=0.1),
    "color_jitter": partial(ja.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "grayscale": ja.grayscale,
    "posterize": partial(ja.posterize, bits=4),
    "solarize": ja.solarize,
    "equalize": ja.equalize,
    "autocontrast": ja.autocontrast,
    "sharpness": partial(ja.sharpness, strength=0.9),
    "gaussian_blur": ja.gaussian_blur,
    "gaussian_noise": partial(ja.gaussian_noise, strength=0.1),
    "cutout": partial(ja.cutout, size=8),
    "random_erasing": ja.random_erasing,
    "mixup": partial(ja.mixup, alpha=0.2),
    "cutmix": ja.cutmix,
    "auto_augment": ja.auto_augment,
    "rand_augment": ja.rand_augment,
    "trivial_augment": ja.trivial_augment,
    "augmix": ja.augmix,
    "three_augment": ja.three_augment,
    **POLICIES,
}
