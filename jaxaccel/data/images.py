"""Pictures as arrays of pixels, by Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxaccel.core.formats.bounds import check_pixels

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What is read, by Pillow's names; others may start programs (EPS starts Ghostscript)."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pillow's mode for the channels of an 8-bit image feature.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAY = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and of TIFF


class Header(NamedTuple):
    """What a picture's file says of it before its pixels are read."""

    width: int
    """Of the upright picture, as `height`."""
    height: int
    gray: bool


def read_header(path: Path) -> Header:
    """The size and kind of a picture; its pixels are not read.

    Raises whatever Pillow raises for files that are damaged or no pictures, and for more pixels than it reads.
    """
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        # Pillow turns a TIFF upright by itself, and says so in its size.
        if image.format != "TIFF" and _orientation(image) >= 5:
            width, height = height, width
        return Header(width, height, image.mode in _GRAY or image.mode.startswith("I;16"))


def _orientation(image: Any) -> int:
    # A PNG without EXIF data would be decoded to look for some behind its pixels.
    if image.format == "PNG" and not {"exif", "xmp", "Raw profile type exif"} & image.info.keys():
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def decode_image(content: bytes, channels: int, *, upright: bool = False) -> np.ndarray:
    """Decodes PNG, JPEG, ... bytes to uint8 (H, W, channels), the first frame of an animation.

    Args:
      content: a file of one of `FORMATS`.
      channels: 1, 3 or 4; see `to_pixels` for what becomes of a picture that has others.
      upright: turn the picture as its EXIF data say. Data sets of TFDS are taken as they are stored.

    Raises:
      ValueError: it has more than `bounds.MAX_PIXELS`, or nobody knows which of its pixels are white.
      Exception: whatever Pillow raises for a damaged picture, or one of another format.
    """
    from PIL import Image, ImageOps, PngImagePlugin

    stream = io.BytesIO(content)
    # Image.open tries one format after the other; most data sets hold PNG.
    png = content.startswith(_PNG_SIGNATURE)
    image: Any = PngImagePlugin.PngImageFile(stream) if png else Image.open(stream, formats=FORMATS)
    check_pixels(image.size)
    if upright and _orientation(image) != 1:
        image.load()
        image = ImageOps.exif_transpose(image)
    return to_pixels(image, channels)


def to_pixels(image: Any, channels: int) -> np.ndarray:
    """A picture of Pillow as uint8 (H, W, channels).

    - 16 bits a pixel: the high byte, as Pillow reads 16-bit color. 12 bits: the highest eight.
    - Floats: 0 is black and 1 is white. Values outside are refused, and so are 32-bit integers.
    - Transparent pixels show white behind them, unless there are four channels.
    - CMYK, palettes, 1 bit and the like are converted as Pillow does it.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _with_eight_bits(image)
    if channels < 4 and image.has_transparency_data:
        image = _on_white(image)
    mode = _MODES[channels]
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)


def _with_eight_bits(image: Any) -> Any:
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            raise ValueError(
                f"its pixels are floats from {values.min():g} to {values.max():g}, not from 0 (black) to 1 (white)"
            )
        return Image.fromarray((255 * values + 0.5).astype(np.uint8))
    if image.mode == "I" and image.format != "PPM":  # 16-bit PGM files come as integers, too
        raise ValueError(
            "its pixels are 32-bit integers, which do not say what is white: save it with 8 or 16 bits"
        )
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))[0]
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _on_white(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))
