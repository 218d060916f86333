"""The network of Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (https://arxiv.org/abs/2404.00498).

Its first layer whitens 2x2 patches of the image: its kernels are the eigenvectors of the patches' covariance, each over
the root of its eigenvalue, and their negatives; they are computed from data and never trained. Three stages follow, of
two 3x3 convolutions each, the first with pooling behind it. The convolutions start as partial identities, BatchNorm has
a bias but no scale, and the head's logits are divided by nine.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxaccel.models.layers.pooling import global_max_pool, max_pool_2x2

PATCH = 2


class Fixed(nnx.Variable):
    """An array that is computed once and not trained."""


def whitening(images: np.ndarray, epsilon: float = 5e-4) -> np.ndarray:
    """Kernels (2, 2, C, 8C) that give patches of `images` uncorrelated channels of variance one, and their negatives.

    Args:
      images: (N, H, W, C) float, as the model sees them.
      epsilon: added to the eigenvalues, so that directions without variance are not blown up.
    """
    channels = images.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    patches = np.moveaxis(windows, 3, -1).reshape(-1, PATCH * PATCH * channels).astype(np.float64)
    # As in the paper, of the raw second moments: the mean color is one of the directions.
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    scaled = vectors[:, ::-1] / np.sqrt(values[::-1] + epsilon)
    kernels = np.concatenate([scaled, -scaled], axis=1)
    return kernels.reshape(PATCH, PATCH, channels, -1).astype(np.float32)


def partial_identity(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Kernels (h, w, in, out) whose first `in` outputs are the inputs, unchanged; the rest is uniformly random."""
    height, width, features_in, features_out = shape
    bound = 1 / np.sqrt(height * width * features_in)
    kernel = jax.random.uniform(key, tuple(shape), dtype, -bound, bound)
    same = jnp.zeros((height, width, features_in, features_in), dtype)
    same = same.at[height // 2, width // 2].set(jnp.eye(features_in, dtype=dtype))
    return jnp.concatenate([same[..., :features_out], kernel[..., features_in:]], axis=-1)


class Stage(nnx.Module):
    """Convolution, 2x2 max pooling, BatchNorm, gelu; convolution, BatchNorm, gelu."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs) -> None:
        def conv(features_in: int) -> nnx.Conv:
            return nnx.Conv(
                features_in, features_out, (3, 3), use_bias=False, kernel_init=partial_identity, rngs=rngs
            )

        def norm() -> nnx.BatchNorm:
            return nnx.BatchNorm(features_out, use_scale=False, momentum=0.6, epsilon=1e-12, rngs=rngs)

        self.conv1, self.norm1 = conv(features_in), norm()
        self.conv2, self.norm2 = conv(features_out), norm()

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, H // 2, W // 2, features_out): an odd last row or column is left out."""
        _, height, width, _ = x.shape
        x = self.conv1(x)[:, : height - height % 2, : width - width % 2]
        x = nnx.gelu(self.norm1(max_pool_2x2(x)), approximate=False)
        return nnx.gelu(self.norm2(self.conv2(x)), approximate=False)


class CifarFast(nnx.Module):
    """Whitening, three stages, 3x3 max pooling, a linear head.

    Parameters stand at ``whiten/bias``, ``stages/<i>/{conv1,norm1,conv2,norm2}`` and ``head``; the whitening kernel is
    state, ``whiten/kernel``.

    Args:
      widths: channels of the stages.
      classes: outputs.
      channels: channels of the images, which are 32x32 or near it.
      sample: images (N, H, W, C) float as the model will see them, from which the whitening is computed; None for
        random orthogonal kernels instead.
      rngs: stream ``params``.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        *,
        classes: int = 10,
        channels: int = 3,
        sample: np.ndarray | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        directions = PATCH * PATCH * channels
        if sample is None:
            basis = nnx.initializers.orthogonal()(rngs.params(), (directions, directions))
            kernel = jnp.concatenate([basis, -basis], axis=1).reshape(PATCH, PATCH, channels, -1)
        else:
            kernel = jnp.asarray(whitening(sample))
        self.whiten = Whiten(kernel)
        self.stages = nnx.List([])
        features = 2 * directions
        for width in widths:
            self.stages.append(Stage(features, width, rngs=rngs))
            features = width
        self.head = nnx.Linear(features, classes, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = nnx.gelu(self.whiten(x), approximate=False)
        for stage in self.stages:
            x = stage(x)
        return self.head(global_max_pool(x)) / 9


class Whiten(nnx.Module):
    """A convolution without padding whose kernel is fixed and whose bias is trained."""

    def __init__(self, kernel: jax.Array) -> None:
        self.kernel = Fixed(kernel)
        self.bias = nnx.Param(jnp.zeros(kernel.shape[-1], kernel.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H - 1, W - 1, 8C)."""
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...].astype(x.dtype), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias[...].astype(x.dtype)


def cifar_fast(
    *,
    widths: Sequence[int] = (64, 256, 256),
    classes: int = 10,
    channels: int = 3,
    sample: np.ndarray | None = None,
    rngs: nnx.Rngs,
) -> CifarFast:
    """1,971,352 parameters at the defaults, and 288 fixed numbers."""
    return CifarFast(widths, classes=classes, channels=channels, sample=sample, rngs=rngs)
