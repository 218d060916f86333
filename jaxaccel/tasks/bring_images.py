"""Pictures of any kind as the images of a data set: arrays of any dtype, files, Pillow images, one or many."""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxaccel.data.images import decode_image, to_pixels
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.bring_arrays import Given

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for images of so many channels."""
_DEEP = ("I", "F")
"""Pillow's modes with more than 8 bits begin like this; `white` may say what their numbers mean."""
_NEARLY_WHOLE = 1e-3
"""Levels that lie so near to whole numbers are those numbers: float32 pixels in [0, 1] that were 8-bit levels are."""


def bring_images(
    given: Any, shape: tuple[int, int, int], image_size: int, size: int, white: float | None
) -> Given:
    """Pictures as batches ``{"image": (B, H, W, C)}`` of up to `size`: uint8 levels, or float32 in [0, 1] between them.

    Args:
      given: an array (H, W), (H, W, C), (B, H, W) or (B, H, W, C); a path or a Pillow image; or an iterable of such
        pictures, whose sizes may differ.
      shape: (H, W, C) of the images that the model takes.
      image_size: what to resize the shorter side to before the center is cut out; 0 refuses other sizes.
      size: images in a batch at most.
      white: see `ImageClassification.bring`.

    Raises:
      UserError: a picture cannot be read, or brought to that shape, or its numbers are no levels.
    """
    if isinstance(given, (str, os.PathLike)) or _is_pillow(given):
        return Given(iter([{"image": _picture(given, shape, image_size, white)[None]}]), single=True)
    if hasattr(given, "__array__") and (array := np.asarray(given)).dtype != object:
        images, single = _with_axes(array, shape)
        return Given(_slices(images, shape, image_size, size, white), single)
    if not isinstance(given, Iterable):
        raise UserError(f"{type(given).__name__} is no picture: give arrays, Pillow images or paths of files")
    return Given(_stacks(iter(given), shape, image_size, size, white), single=False)


def _slices(
    images: np.ndarray, shape: tuple[int, int, int], image_size: int, size: int, white: float | None
) -> Iterator[dict[str, np.ndarray]]:
    top = _white(images, white)
    for start in range(0, len(images), size):
        part = _levels(images[start : start + size], top)
        if part.shape[1:] != shape:
            part = np.stack([_fitted(image, shape, image_size) for image in part])
        yield {"image": part}


def _stacks(
    pictures: Iterator[Any], shape: tuple[int, int, int], image_size: int, size: int, white: float | None
) -> Iterator[dict[str, np.ndarray]]:
    numbers = itertools.count()
    while some := list(itertools.islice(pictures, size)):
        images = []
        for number, picture in zip(numbers, some, strict=False):
            try:
                images.append(_picture(picture, shape, image_size, white))
            except UserError as error:
                raise UserError(f"picture {number}: {error.message}") from error
        yield {"image": _stacked(images)}


def _picture(picture: Any, shape: tuple[int, int, int], image_size: int, white: float | None) -> np.ndarray:
    """One picture, (H, W, C) of `shape`."""
    if isinstance(picture, (str, os.PathLike)):
        return _fitted(_of_file(Path(picture), shape[2]), shape, image_size)
    if _is_pillow(picture) and not (white and picture.mode.startswith(_DEEP)):
        return _fitted(_of_pillow(picture, shape[2]), shape, image_size)
    array = np.asarray(picture)
    if array.dtype == object:
        raise UserError(
            f"{type(picture).__name__} is no picture: give arrays, Pillow images or paths of files"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise UserError(f"one picture has the shape (H, W) or (H, W, C), got {array.shape}")
    return _fitted(_levels(array, _white(array, white)), shape, image_size)


def _with_axes(array: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool]:
    """`array` as (B, H, W, C), and whether it is one picture without a batch axis."""
    last, channels = array.shape[-1] if array.ndim else 0, shape[2]
    takes = f"the model takes images of shape (B, {shape[0]}, {shape[1]}, {channels}), got {array.shape}"
    if array.ndim == 2:
        return array[None, :, :, None], True
    if array.ndim == 4:
        return array, False
    if array.ndim != 3:
        raise UserError(takes)
    if array.shape == shape or (array.shape[1:] != shape[:2] and last in MODES):
        return array[None], True
    if array.shape[0] == channels > 1:
        raise UserError(
            f"{takes}, which may be one picture with its channels first: move them to the last axis"
        )
    return array[..., None], False


def _white(pixels: np.ndarray, white: float | None) -> float:
    """The number of a white pixel, by the rule of `ImageClassification.bring`."""
    if pixels.dtype == bool:
        return white or 1
    if not (jnp.issubdtype(pixels.dtype, jnp.floating) or jnp.issubdtype(pixels.dtype, jnp.integer)):
        raise UserError(f"pixels must be numbers, got an array of {pixels.dtype}")
    if not pixels.size:
        return white or 255
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("pixels must be finite numbers, got NaN or infinity among them")
    if white is None and 0 < high <= 1 and low >= 0 and not jnp.issubdtype(pixels.dtype, jnp.integer):
        raise UserError(
            f"all pixels lie in [0, 1], which may be nearly black of 255: say {option('white', 1)} where 1 is white, "
            f"or {option('white', 255)}"
        )
    top = 255 if white is None else white
    outside = f"pixels must lie in [0, {top:g}], got {low:g} to {high:g}"
    if low < 0:
        raise UserError(f"{outside}: give pictures as they were before they were standardized")
    if high > top:
        raise UserError(f"{outside}: give the number of a white pixel, {option('white', 65535)} for 16 bits")
    return top


def _levels(pixels: np.ndarray, white: float) -> np.ndarray:
    """uint8 levels where all are whole, else float32 in [0, 1]."""
    if white == 255 and jnp.issubdtype(pixels.dtype, jnp.integer):
        return pixels.astype(np.uint8)
    levels = pixels.astype(np.float32) * np.float32(255 / white)
    whole = np.rint(levels)
    if (np.abs(levels - whole) < _NEARLY_WHOLE).all():
        return whole.astype(np.uint8)
    return levels / np.float32(255)


def _stacked(images: list[np.ndarray]) -> np.ndarray:
    """Images of uint8, or of uint8 and float32 in [0, 1], as one array."""
    if len({image.dtype for image in images}) == 1:
        return np.stack(images)
    return np.stack([x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x for x in images])


def _fitted(image: np.ndarray, shape: tuple[int, int, int], image_size: int) -> np.ndarray:
    """`image` (h, w, c) as (H, W, C); what must be converted is rounded to 8 bits, as data sets have it."""
    if image.shape == shape:
        return image
    if image.shape[2] != shape[2] and not {image.shape[2], shape[2]} <= MODES.keys():
        raise UserError(f"the model takes images of {shape[2]} channels, got {image.shape}")
    if image.shape[:2] != shape[:2] and not image_size:
        height, width = image.shape[:2]
        raise UserError(
            f"the model takes images of shape {shape}, got {image.shape}: bring {height} x {width} pixels to "
            f"{shape[0]} x {shape[1]}, or train with {option('task.image_size')}, which resizes"
        )
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    if image.shape[2] != shape[2]:
        image = _of_pillow(_as_pillow(image), shape[2])
    return image if image.shape == shape else resize(image, image_size)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """(h, w, c) uint8 or float32 -> (size, size, c): shorter side to `size` (bilinear, antialiased), center crop."""
    from PIL import Image

    if image.dtype == np.float32 and image.shape[-1] > 1:  # Pillow has floats of one channel only
        return np.concatenate([resize(image[..., i : i + 1], size) for i in range(image.shape[-1])], -1)
    picture = _as_pillow(image)
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    resized = np.asarray(picture.crop((left, top, left + size, top + size)))
    return resized.reshape(size, size, image.shape[-1])


def _as_pillow(image: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def _is_pillow(given: Any) -> bool:
    return hasattr(given, "convert") and hasattr(given, "mode") and hasattr(given, "getbands")


def _of_pillow(picture: Any, channels: int) -> np.ndarray:
    """A Pillow image as a data set would have it, (H, W, channels), upright."""
    from PIL import ImageOps

    if channels not in MODES:
        raise UserError(f"the model takes images of {channels} channels, which no picture has: give arrays")
    try:
        return to_pixels(ImageOps.exif_transpose(picture), channels)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read the picture ({error})") from error


def _of_file(path: Path, channels: int) -> np.ndarray:
    """A file of an image as a data set would have it, (H, W, channels)."""
    if not path.is_file():
        what = "is a folder: give the files in it" if path.is_dir() else "is not there"
        raise UserError(f"the image file {path} {what}")
    if channels not in MODES:
        raise UserError(
            f"the model takes images of {channels} channels, which no image file has: give arrays"
        )
    try:
        return decode_image(path.read_bytes(), channels, upright=True)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(f"cannot read the image {path} ({error})") from error
