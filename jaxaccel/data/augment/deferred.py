"""Changes of images that wait, to be joined with the next one of their kind.

Inside a `chain` the batch is a `Deferred`: an operation that is a matrix, of places or of colors, leaves the matrix
there instead of changing the image; a following one of the same kind multiplies it. Whoever reads the image makes
the change happen. So any code that calls our operations joins them, and code that does not sees a common batch.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax

from jaxaccel.data.augment.batch import Batch, checked, image_of


class Change(Protocol):
    """A change of the images of a batch that may wait, to be joined with the next one."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the images after it, (B, H, W, C)."""
        ...

    def then(self, following: Any) -> "Change | None":
        """This change and then the following one as one, or None where they do not join."""
        ...

    def apply(self, image: jax.Array) -> jax.Array:
        """The changed images."""
        ...


class Deferred(Mapping[str, jax.Array]):
    """A batch whose last change of the images has not been carried out yet; reading ``image`` does."""

    def __init__(self, batch: Batch, change: Change | None = None) -> None:
        self._batch, self.change = batch, change

    def __getitem__(self, name: str) -> jax.Array:
        if name == "image" and self.change is not None:
            self._batch = {**self._batch, "image": self.change.apply(self._batch["image"])}
            self.change = None
        return self._batch[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the image
        return name in self._batch

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)

    def unchanged(self) -> jax.Array:
        """The images before the change that waits."""
        return self._batch["image"]

    def joined(self, change: Change) -> "Deferred":
        """This batch with one change more."""
        both = self.change.then(change) if self.change is not None else change
        if both is None:
            return Deferred({**self}, change)
        return Deferred(self._batch, both)


# A Deferred that crosses a boundary of JAX (jit, vmap, ...) becomes a plain batch there.
jax.tree_util.register_pytree_node(
    Deferred,
    lambda batch: (tuple(batch.values()), tuple(batch)),
    lambda names, values: dict(zip(names, values, strict=True)),  # pyright: ignore[reportArgumentType]
)


def changed(batch: Batch, change: Change) -> Batch:
    """The batch with its images changed: now, or inside a chain when somebody asks for them."""
    if isinstance(batch, Deferred):
        return batch.joined(change)
    return {**batch, "image": change.apply(batch["image"])}


def image_like(batch: Batch, operation: str) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the images, without making them happen.

    Raises:
      UserError: there is none, or none of shape (B, H, W, C) and uint8 or floating point.
    """
    if not isinstance(batch, Deferred) or batch.change is None:
        image = image_of(batch, operation)
        return jax.ShapeDtypeStruct(image.shape, image.dtype)
    before = batch.unchanged()
    return checked(jax.ShapeDtypeStruct(batch.change.shape(before.shape), before.dtype), operation)
