"""Augmentation inside the jitted step: pure functions ``(key, batch, *, options) -> batch``.

An operation stands in a recipe as itself or as a ``functools.partial`` that fixes its options, and
``chain`` joins several into one::

    augment = chain(horizontal_flip, partial(pad_and_crop, padding=4), partial(cutout, size=8))
    batch = augment(jax.random.fold_in(key, step), batch)

``batch["image"]`` has shape (B, H, W, C) and dtype uint8 or floating point; the dtype stays, and so does the shape
(`random_resized_crop` and `resize` may change it). Operations on color and tone take floating-point images as [0, 1].
Options are plain Python values, checked when the operation is called (traced); a bad one raises ``UserError``.

What happens to an example depends on the key and the example's ``index`` alone: not on its place in the
batch, on the batch's size or on the number of devices. Mixing (``mixup``, ``cutmix``) is the one exception, and only
in part: its weight is keyed like everything else, its partner is the neighbor in the batch. ``alternating_flip``
depends on the index and the epoch, and not on the key.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
