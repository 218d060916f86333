"""Changes of places that wait in a chain: resamplings by a matrix, which multiply, and mirror images."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import Options
from jaxaccel.data.augment.batch import computed_once, per_image
from jaxaccel.data.augment.exact import product, stacked
from jaxaccel.data.augment.resample import Fill, Method, fraction_bits, places, sample


@dataclasses.dataclass(frozen=True)
class Resampling(Options):
    """A `deferred.Change`: the images (B, H, W, C) at the places that one matrix for each of them gives."""

    key: jax.Array
    """Of the operation; see `batch.computed_once`."""
    matrix: jax.Array
    """(B, 3, 3) float32, from output to input pixels, each measured from the center; the last entry is 1."""
    size: tuple[int, int]
    """Height and width of the output."""
    fill: Fill = 0
    """Beyond the border."""
    method: Method = "bilinear"
    """The kernel."""
    projective: bool = False
    """Whether the last row may be other than (0, 0, 1)."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the output."""
        return (shape[0], *self.size, shape[3])

    def then(self, following: object) -> "Resampling | None":
        """Both in one resampling, where they agree on the kernel and on what lies beyond the border."""
        if isinstance(following, Mirroring):
            following = following.resampling(self.size, self.fill, self.method)
        if not isinstance(following, Resampling) or (self.fill, self.method) != (
            following.fill,
            following.method,
        ):
            return None
        return dataclasses.replace(
            following,
            key=self.key,
            matrix=composed(self.matrix, following.matrix, max(*self.size, *following.size)),
            projective=self.projective or following.projective,
        )

    def apply(self, image: jax.Array) -> jax.Array:
        """The images at the new places."""
        _, height, width, channels = image.shape
        bits = fraction_bits(max(height, self.size[0]), max(width, self.size[1]))

        def one_image(image: jax.Array, matrix: jax.Array) -> jax.Array:
            row, column = places(matrix, self.size, (height, width), bits, self.projective)
            sampled = sample(image, row, column, bits=bits, fill=self.fill, method=self.method)
            return sampled.reshape(*self.size, channels)

        matrix = computed_once(self.key, self.matrix)  # not for each pixel anew
        return computed_once(self.key, jax.vmap(one_image)(image, matrix))


@dataclasses.dataclass(frozen=True)
class Mirroring:
    """A `deferred.Change`: images mirrored or not, which moves whole pixels and joins any `Resampling`."""

    key: jax.Array
    """Of the operation."""
    mirrored: dict[int, jax.Array]
    """For each axis (1: rows, 2: columns) which images, (B,) bool."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the input."""
        return shape

    def resampling(self, size: tuple[int, int], fill: Fill, method: Method) -> Resampling:
        """The same as a matrix."""
        no = jnp.zeros_like(next(iter(self.mirrored.values())))
        rows, columns = (jnp.where(self.mirrored.get(axis, no), -1.0, 1.0) for axis in (1, 2))
        return Resampling(self.key, stacked([[rows, 0, 0], [0, columns, 0], [0, 0, 1]]), size, fill, method)

    def then(self, following: object) -> "Mirroring | Resampling | None":
        """Both in one, whatever the following's kernel."""
        if isinstance(following, Mirroring):
            both = dict(self.mirrored)
            for axis, mirrored in following.mirrored.items():
                both[axis] = both[axis] ^ mirrored if axis in both else mirrored
            return Mirroring(self.key, both)
        if isinstance(following, Resampling):
            return self.resampling(following.size, following.fill, following.method).then(following)
        return None

    def apply(self, image: jax.Array) -> jax.Array:
        """The mirrored images."""
        for axis, mirrored in self.mirrored.items():
            image = jnp.where(per_image(mirrored), jnp.flip(image, axis), image)
        return image


def composed(first: jax.Array, second: jax.Array, size: int) -> jax.Array:
    """The matrix that does the first and then the second, for images of at most ``size`` pixels a side.

    Both lead from output to input, so the second stands on the right. Lengths are measured in a power of two of
    about half the size meanwhile, so that all entries are of the order of one.
    """
    unit = 2.0 ** math.ceil(math.log2(max(size, 2) / 2))
    scale = np.array([[1, 1, 1 / unit], [1, 1, 1 / unit], [unit, unit, 1]], np.float32)
    matrix = product(first * scale, second * scale)
    return matrix / matrix[:, 2:, 2:] / scale
