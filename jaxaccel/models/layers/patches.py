"""Images cut into patches, for Vision Transformers and Mixers."""

import jax

from jaxaccel.models.layers.blocks import pair


def patches(x: jax.Array, size: int) -> jax.Array:
    """Cuts images into square patches, row by row.

    Args:
      x: (B, H, W, C); H and W are multiples of `size`.
      size: side of a patch in pixels.

    Returns:
      (B, H/size * W/size, size * size * C), dtype of `x`.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)


def patch_count(model: str, image_size: int | tuple[int, int], patch_size: int) -> int:
    """Patches of an image.

    Raises:
      ValueError: they do not cover it; `model` is whose fault it is.
    """
    height, width = pair(image_size)
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"{model}: image size {height}x{width} is no multiple of patch_size={patch_size}")
    return (height // patch_size) * (width // patch_size)
