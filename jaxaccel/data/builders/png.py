"""Images as PNG bytes, the only form a TFDS Image feature encodes without TensorFlow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 image of shape (H, W), (H, W, 1) or (H, W, 3); lossless."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
