"""Draws the pictures of docs/guides/augmentation.md: each augmentation on a photograph.

A row shows the photograph as it was, then six draws.

python docs/pictures.py
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from jaxaccel import augment as ja

HERE = Path(__file__).parent / "pictures"
DRAWS = 6

SHEETS: dict[str, dict[str, Any]] = {
    "places": {
        "horizontal_flip": ja.horizontal_flip,
        "vertical_flip": ja.vertical_flip,
        "alternating_flip\n(epochs 0, 1, 2, ...)": ja.alternating_flip,
        "pad_and_crop(padding=16)": partial(ja.pad_and_crop, padding=16),
        'pad_and_crop(padding=16,\nmode="reflect")': partial(ja.pad_and_crop, padding=16, mode="reflect"),
        "random_resized_crop": ja.random_resized_crop,
        "rotate(rotation=30)": partial(ja.rotate, rotation=30),
        'rotate(rotation=30,\nfill="edge")': partial(ja.rotate, rotation=30, fill="edge"),
        'rotate(rotation=30,\nfill="reflect")': partial(ja.rotate, rotation=30, fill="reflect"),
        "scale(scale=(0.6, 1.6))": partial(ja.scale, scale=(0.6, 1.6)),
        "translate(translation=0.2)": partial(ja.translate, translation=0.2),
        "shear(shear=0.3)": partial(ja.shear, shear=0.3),
        "affine(rotation=15,\nscale=(0.8, 1.2),\ntranslation=0.1)": partial(
            ja.affine, rotation=15, scale=(0.8, 1.2), translation=0.1
        ),
        "perspective(probability=1.0)": partial(ja.perspective, probability=1.0),
        "elastic(displacement=12,\nspacing=16)": partial(ja.elastic, displacement=12, spacing=16),
    },
    "colors": {
        "brightness(strength=0.5)": partial(ja.brightness, strength=0.5),
        "contrast(strength=0.7)": partial(ja.contrast, strength=0.7),
        "saturation(strength=0.9)": partial(ja.saturation, strength=0.9),
        "hue(strength=0.5)": partial(ja.hue, strength=0.5),
        "color_jitter(\nbrightness=0.4, contrast=0.4,\nsaturation=0.4, hue=0.1)": partial(
            ja.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        ),
        "grayscale(probability=0.5)": partial(ja.grayscale, probability=0.5),
        "invert": ja.invert,
        "posterize(bits=2)": partial(ja.posterize, bits=2),
        "solarize": ja.solarize,
        "equalize": ja.equalize,
        "autocontrast": ja.autocontrast,
        "sharpness(strength=4)": partial(ja.sharpness, strength=4),
        "gaussian_blur(sigma=(0.0, 4.0))": partial(ja.gaussian_blur, sigma=(0.0, 4.0)),
        "gaussian_noise(strength=0.1)": partial(ja.gaussian_noise, strength=0.1),
    },
    "policies": {
        "cutout(size=40)": partial(ja.cutout, size=40),
        "random_erasing": ja.random_erasing,
        'random_erasing(fill="noise")': partial(ja.random_erasing, fill="noise"),
        "mixup(alpha=1.0)": partial(ja.mixup, alpha=1.0),
        "cutmix": ja.cutmix,
        "mixup_or_cutmix": ja.mixup_or_cutmix,
        'auto_augment(policy="imagenet")': ja.auto_augment,
        'auto_augment(policy="cifar10")': partial(ja.auto_augment, policy="cifar10"),
        'auto_augment(policy="svhn")': partial(ja.auto_augment, policy="svhn"),
        "rand_augment": ja.rand_augment,
        "trivial_augment": ja.trivial_augment,
        "augmix": ja.augmix,
        "three_augment": ja.three_augment,
    },
}


def batch() -> dict[str, Any]:
    """A cat, and for what mixes neighbors every other time a cup of coffee."""
    cat, coffee = (np.asarray(Image.open(HERE / f"{name}.png").convert("RGB")) for name in ("cat", "coffee"))
    return {
        "image": np.stack([coffee, cat] * DRAWS),
        "label": np.zeros(2 * DRAWS, np.int32),
        "index": np.arange(2 * DRAWS, dtype=np.int32),
        "epoch": np.arange(2 * DRAWS, dtype=np.int32) // 2,
    }


def draw(name: str, operations: dict[str, Any]) -> None:
    """One sheet: a row for each operation, the image as it was at its beginning."""
    columns, rows = DRAWS + 1, len(operations)
    width, height, labels = columns + 1.95, 1.0 * rows, 1.92
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=labels / width, right=0.998, bottom=0.002, top=0.998, wspace=0.04, hspace=0.04
    )
    for number, (row, (label, operation)) in enumerate(zip(axes, operations.items(), strict=True)):
        given = batch()
        if operation is ja.alternating_flip:  # one example, epoch after epoch
            given["index"] = np.ones(2 * DRAWS, np.int32)
        images = np.asarray(jax.jit(operation)(jax.random.key(number), given)["image"])[1::2]
        for axis, image in zip(row, [given["image"][1], *images], strict=True):
            axis.imshow(image)
            axis.set_axis_off()
        row[0].text(-0.06, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=7.5)
    figure.savefig(HERE / f"{name}.jpg", dpi=110, pil_kwargs={"quality": 82})
    plt.close(figure)


if __name__ == "__main__":
    for sheet, operations in SHEETS.items():
        draw(sheet, operations)
