"""Augmentations in a row, with what can be done at once done at once."""

import jax

from jaxaccel.data.augment.batch import Augmentation, Batch
from jaxaccel.data.augment.deferred import Deferred
from jaxaccel.errors import UserError


def chain(*augmentations: Augmentation) -> Augmentation:
    """Joins augmentations, applied from left to right, into one.

    Each gets a key of its own, ``fold_in(key, position)``. An empty chain returns the batch as it is. Neighbors that
    move pixels (`rotate`, `random_resized_crop`, ...) resample once, neighbors that are linear in color multiply
    once.

    Raises:
      UserError: an entry is not callable.
    """
    for augmentation in augmentations:
        if not callable(augmentation):
            raise UserError(
                f"chain takes functions (key, batch) -> batch, not {augmentation!r}; "
                "fix options with functools.partial"
            )

    def chained(key: jax.Array, batch: Batch) -> Batch:
        inside = isinstance(batch, Deferred)
        result = batch
        for position, augmentation in enumerate(augmentations):
            result = result if isinstance(result, Deferred) else Deferred(result)
            result = augmentation(jax.random.fold_in(key, position), result)
        return dict(result) if isinstance(result, Deferred) and not inside else result

    return chained
