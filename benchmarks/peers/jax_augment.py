"""Augments by dm_pix and augmax, which do one image and are mapped over the batch; for augment."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_images(function: Callable[[jax.Array, jax.Array], Any]) -> Callable[[jax.Array, jax.Array], Any]:
    """Maps what does one image, as dm_pix and augmax do, over a batch."""
    return lambda key, images: jax.vmap(function)(jax.random.split(key, images.shape[0]), images)


def list_dm_pix(size: int) -> dict[str, Any]:
    """Lists by our names what dm_pix has of them, from one key and one image."""
    import dm_pix  # pyright: ignore[reportMissingImports]

    def angle(key: jax.Array, degrees: float) -> jax.Array:
        return jnp.radians(jax.random.uniform(key, minval=-degrees, maxval=degrees))

    def turned(key: jax.Array, image: jax.Array) -> jax.Array:
        turn, grow, move = jax.random.split(key, 3)
        theta, scale = angle(turn, 15), jax.random.uniform(grow, minval=0.8, maxval=1.2)
        cosine, sine = jnp.cos(theta) / scale, jnp.sin(theta) / scale
        matrix = jnp.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        center = jnp.array([(size - 1) / 2, (size - 1) / 2, 0.0])
        shift = jnp.append(jax.random.uniform(move, (2,), minval=-0.1, maxval=0.1) * size, 0.0)
        return dm_pix.affine_transform(
            image, matrix, offset=center - matrix @ (center + shift), mode="constant"
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


def list_augmax(size: int) -> dict[str, Any]:
    """Lists by our names what augmax has of them, from one key and one image."""
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
