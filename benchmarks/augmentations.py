"""The augmentations that augment.py times: jaxaccel's, and what dm_pix, augmax and Pillow have of them."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxaccel import augment as ja

Call = Callable[[], Any]

ONE_BY_ONE = 32
"""Images that Pillow and torchvision do, which take them one by one: more would only take longer."""

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


def mapped(function: Callable[[jax.Array, jax.Array], Any]) -> Callable[[jax.Array, jax.Array], Any]:
    """What does one image, as dm_pix and augmax do, on a batch."""
    return lambda key, images: jax.vmap(function)(jax.random.split(key, images.shape[0]), images)


def dm_pix_calls(size: int) -> dict[str, Any]:
    """By our names, what dm_pix has of them, from one key and one image."""
    import dm_pix  # pyright: ignore[reportMissingImports]

    def angle(key: jax.Array, degrees: float) -> jax.Array:
        return jnp.radians(jax.random.uniform(key, minval=-degrees, maxval=degrees))

    def turned(key: jax.Array, image: jax.Array) -> jax.Array:
        turn, grow, move = jax.random.split(key, 3)
        theta, scale = angle(turn, 15), jax.random.uniform(grow, minval=0.8, maxval=1.2)
        cosine, sine = jnp.cos(theta) / scale, jnp.sin(theta) / scale
        matrix = jnp.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        centre = jnp.array([(size - 1) / 2, (size - 1) / 2, 0.0])
        shift = jnp.append(jax.random.uniform(move, (2,), minval=-0.1, maxval=0.1) * size, 0.0)
        return dm_pix.affine_transform(
            image, matrix, offset=centre - matrix @ (centre + shift), mode="constant"
        )

    def moved(key: jax.Array, image: jax.Array) -> jax.Array:
        shift = jnp.append(jax.random.uniform(key, (2,), minval=-0.1, maxval=0.1) * size, 0.0)
        return dm_pix.affine_transform(image, jnp.eye(3), offset=shift, mode="constant")

    def cropped(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = dm_pix.pad_to_size(image, size + 8, size + 8)
        return dm_pix.random_crop(key, padded, (size, size, 3))

    def jittered(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        image = dm_pix.random_brightness(keys[0], image, 0.4)
        image = dm_pix.random_contrast(keys[1], image, 0.6, 1.4)
        image = dm_pix.random_saturation(keys[2], image, 0.6, 1.4)
        return dm_pix.random_hue(keys[3], image, 0.1)

    def blurred(key: jax.Array, image: jax.Array) -> jax.Array:
        return dm_pix.gaussian_blur(image, jax.random.uniform(key, minval=0.1, maxval=2.0), 13)

    def sometimes(function: Any, probability: float) -> Any:
        return lambda key, image: jnp.where(jax.random.uniform(key) < probability, function(image), image)

    return {
        "horizontal_flip": dm_pix.random_flip_left_right,
        "vertical_flip": dm_pix.random_flip_up_down,
        "pad_and_crop": cropped,
        "rotate": lambda key, image: dm_pix.rotate(image, angle(key, 30), mode="constant"),
        "translate": moved,
        "affine": turned,
        "elastic": lambda key, image: dm_pix.elastic_deformation(key, image, 20.0, 4.0, mode="constant"),
        "brightness": lambda key, image: dm_pix.random_brightness(key, image, 0.4),
        "contrast": lambda key, image: dm_pix.random_contrast(key, image, 0.6, 1.4),
        "saturation": lambda key, image: dm_pix.random_saturation(key, image, 0.6, 1.4),
        "hue": lambda key, image: dm_pix.random_hue(key, image, 0.1),
        "color_jitter": jittered,
        "grayscale": sometimes(lambda image: dm_pix.rgb_to_grayscale(image, keep_dims=True), 0.1),
        "solarize": sometimes(lambda image: dm_pix.solarize(image, 0.5), 0.5),
        "gaussian_blur": blurred,
    }


def augmax_calls(size: int) -> dict[str, Any]:
    """By our names, what augmax has of them, from one key and one image."""
    import augmax  # pyright: ignore[reportMissingImports]

    def both(*transforms: Any) -> Any:
        chain = augmax.Chain(*transforms)
        return lambda key, image: chain(key, image)

    jitter = augmax.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=1.0)
    crop = augmax.RandomSizedCrop(size, size, zoom_range=(1.0, 3.5))
    return {
        "horizontal_flip": both(augmax.HorizontalFlip()),
        "vertical_flip": both(augmax.VerticalFlip()),
        "random_resized_crop": both(crop),
        "rotate": both(augmax.Rotate((-30, 30))),
        "elastic": both(augmax.Warp(strength=4, coarseness=8)),
        "brightness": both(augmax.RandomBrightness((-0.4, 0.4), p=1.0)),
        "contrast": both(augmax.RandomContrast((-0.4, 0.4), p=1.0)),
        "color_jitter": both(jitter),
        "grayscale": both(augmax.RandomGrayscale(p=0.1)),
        "solarize": both(augmax.Solarization()),
        "gaussian_blur": both(augmax.GaussianBlur(sigma=2, p=1.0)),
        "Inception": both(crop, augmax.HorizontalFlip(), jitter),
    }


def pillow_calls(size: int) -> dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]]:
    """The policies on one uint8 image, as a data loader computes them."""

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


def contenders(name: str, size: int, batch: int) -> Iterator[tuple[str, Call]]:
    """(name, what augments a batch and waits for it)."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    key = jax.random.key(0)
    label, index = jnp.zeros(batch, jnp.int32), jnp.arange(batch)
    ours = jax.jit(
        lambda key, image: OURS[name](key, {"image": image, "label": label, "index": index})["image"]
    )
    floats, eight = jnp.asarray(levels / np.float32(255), jnp.float32), jnp.asarray(levels)
    yield "jaxaccel", lambda: ours(key, floats).block_until_ready()
    yield "jaxaccel, uint8", lambda: ours(key, eight).block_until_ready()
    for rival, calls in (("dm_pix", dm_pix_calls), ("augmax", augmax_calls)):
        if find_spec(rival) and name in calls(size):
            compiled = jax.jit(mapped(calls(size)[name]))
            yield rival, lambda compiled=compiled: jax.block_until_ready(compiled(key, floats))
    if name in POLICIES:
        one = pillow_calls(size)[name]
        yield "Pillow", lambda: np.stack([one(rng, image) for image in levels[:ONE_BY_ONE]])
