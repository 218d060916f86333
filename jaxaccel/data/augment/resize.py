"""Images of another size."""

from numbers import Integral

import jax

from jaxaccel.core.options import checked
from jaxaccel.data.augment.batch import Batch, compute_dtype, image_of, to_dtype
from jaxaccel.errors import UserError


@checked
def resize(key: jax.Array, batch: Batch, *, size: int) -> Batch:
    """Resizes each image to ``size`` x ``size``, bilinearly; what shrinks is smoothed before (antialiased).

    Nothing is random: `key` is taken so that it can stand among augmentations. Training on small images first and
    on larger ones later is what it is for (progressive resizing).

    Raises:
      UserError: the size is no whole number above 0, or the batch has no usable image.
    """
    del key
    image = image_of(batch, "resize")
    if not isinstance(size, Integral) or size < 1:
        raise UserError(f"resize: size must be a whole number of pixels above 0, not {size!r}")
    count, height, width, channels = image.shape
    if height == width == size:
        return batch
    resized = jax.image.resize(
        image.astype(compute_dtype(image.dtype)), (count, size, size, channels), "bilinear", antialias=True
    )
    return {**batch, "image": to_dtype(resized, image.dtype)}
