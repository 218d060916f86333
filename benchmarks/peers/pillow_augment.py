"""Augments by Pillow, as one worker of a data loader does; for augment."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def list_policies(size: int) -> dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]]:
    """Lists the policies on one uint8 image, as a data loader computes them."""

    def flipped(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if rng.random() < 0.5 else picture

    def resized(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
        side = size * rng.uniform(0.08, 1.0) ** 0.5
        wider = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)) / 2)
        wide, tall = min(side * wider, size), min(side / wider, size)
        left, top = rng.uniform(0, size - wide), rng.uniform(0, size - tall)
        box = (left, top, left + wide, top + tall)
        return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)

    def jittered(rng: np.random.Generator, picture: Image.Image, strength: float, hue: bool) -> Image.Image:
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = kind(picture).enhance(rng.uniform(1 - strength, 1 + strength))
        if hue:
            h, s, v = picture.convert("HSV").split()
            turn = int(rng.integers(-25, 26))
            h = h.point([(level + turn) % 256 for level in range(256)])
            picture = Image.merge("HSV", (h, s, v)).convert("RGB")
        return picture

    def cifar(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        image = np.pad(image[:, ::-1] if rng.random() < 0.5 else image, ((4, 4), (4, 4), (0, 0)))
        top, left = rng.integers(0, 9, 2)
        image = image[top : top + size, left : left + size].copy()
        y, x = rng.integers(0, size, 2) - 4
        image[max(y, 0) : y + 8, max(x, 0) : x + 8] = 0
        return image

    def inception(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        picture = flipped(rng, resized(rng, Image.fromarray(image)))
        return np.asarray(jittered(rng, picture, 0.4, hue=True))

    def deit(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        picture = flipped(rng, resized(rng, Image.fromarray(image)))
        choice = rng.integers(3)
        if choice == 0:
            picture = picture.convert("L").convert("RGB")
        elif choice == 1:
            picture = ImageOps.solarize(picture)
        else:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        return np.asarray(jittered(rng, picture, 0.3, hue=False))

    return {"CIFAR": cifar, "Inception": inception, "DeiT III": deit}
