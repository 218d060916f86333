"""Augmentation inside the jitted step: pure functions ``(key, batch, *, options) -> batch``.

An operation stands in a recipe as itself or as a ``functools.partial`` that fixes its options, and
``chain`` joins several into one::

    augment = chain(horizontal_flip, partial(pad_and_crop, padding=4), partial(cutout, size=8))
    batch = augment(jax.random.fold_in(key, step), batch)

What happens to an example depends on the key and the example's ``index`` alone: not on its place in the
batch, on the batch's size or on the number of devices. ``mixup`` is the one exception, and only in part:
its weight is keyed like everything else, its partner is the neighbour in the batch.
"""

from jaxaccel.augment.affine import affine, rotate, scale, translate
from jaxaccel.augment.image import (
    Augmentation,
    Batch,
    chain,
    cutout,
    example_keys,
    horizontal_flip,
    mixup,
    pad_and_crop,
)
from jaxaccel.augment.resize import resize

__all__ = [
    "Augmentation",
    "Batch",
    "affine",
    "chain",
    "cutout",
    "example_keys",
    "horizontal_flip",
    "mixup",
    "pad_and_crop",
    "resize",
    "rotate",
    "scale",
    "translate",
]
