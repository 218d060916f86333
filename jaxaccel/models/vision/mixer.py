"""MLP-Mixer of Tolstikhin et al. 2021 (https://arxiv.org/abs/2105.01601): patches, mixed by dense layers alone."""

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import (
    StochasticDepth,
    drop_paths,
    pair,
    truncated_normal,
)
from jaxaccel.models.layers.mlp import Mlp
from jaxaccel.models.layers.patches import patch_count, patches
from jaxaccel.models.layers.scan import sequence


class Block(nnx.Module):
    """An MLP over the patches of each channel, then one over the channels of each patch, both added to their input."""

    def __init__(
        self,
        tokens: int,
        width: int,
        *,
        hidden: tuple[int, int],
        drop_path: StochasticDepth,
        exact_gelu: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.tokens = Mlp(tokens, hidden[0], exact_gelu=exact_gelu, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.channels = Mlp(width, hidden[1], exact_gelu=exact_gelu, rngs=rngs)
        self.drop_path = drop_path

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.drop_path(self.tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2))
        return x + self.drop_path(self.channels(self.norm2(x)))


class Mixer(nnx.Module):
    """Patches, embedded; blocks; LayerNorm, the mean over patches and a linear head.

    Parameters stand at ``embed``, ``blocks/<i>/{norm1,norm2}``, ``blocks/<i>/{tokens,channels}/{up,down}``, ``norm``
    and ``head``. ``embed/kernel`` is (patch * patch * channels, width). Kernels start truncated normal with standard
    deviation 0.02, the head at 0, so that the first loss is log(classes).

    Args:
      width: features of a patch.
      depth: blocks.
      hidden: width of the MLPs over patches and over channels; default half of `width` and four times it.
      patch_size: side of a patch in pixels.
      drop_path: probability of stochastic depth in the last block, in the others proportionally less.
      exact_gelu: not the tanh approximation: for weights of timm.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images.
      image_size: height and width in pixels, or one number for both: multiples of `patch_size`.
      rngs: streams ``params``, and ``dropout`` if `drop_path` > 0.

    Raises:
      ValueError: arguments do not fit together, or, at the call, the images are not of the size given here.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        hidden: tuple[int, int] | None = None,
        patch_size: int = 16,
        drop_path: float = 0.0,
        exact_gelu: bool = False,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        rngs: nnx.Rngs,
    ) -> None:
        tokens = patch_count("Mixer", image_size, patch_size)
        self.input_shape = (*pair(image_size), channels)
        self.patch_size = patch_size
        hidden = hidden or (width // 2, 4 * width)
        self.embed = nnx.Linear(patch_size**2 * channels, width, kernel_init=truncated_normal, rngs=rngs)
        drops = drop_paths(drop_path, depth, rngs=rngs)
        blocks = [
            Block(tokens, width, hidden=hidden, drop_path=drop, exact_gelu=exact_gelu, rngs=rngs)
            for drop in drops
        ]
        self.blocks = sequence(blocks, scan)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(width, classes, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"Mixer: built for images {self.input_shape}, got a batch of shape {x.shape}")
        x = self.embed(patches(x, self.patch_size))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


def mixer_s16(
    *,
    drop_path: float = 0.0,
    exact_gelu: bool = False,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    rngs: nnx.Rngs,
) -> Mixer:
    """Mixer-S/16: 8 blocks of width 512; 18,528,264 parameters at the defaults."""
    return Mixer(
        width=512, depth=8, drop_path=drop_path, exact_gelu=exact_gelu, scan=scan,
        classes=classes, channels=channels, image_size=image_size, rngs=rngs,
    )  # fmt: skip


def mixer_b16(
    *,
    drop_path: float = 0.0,
    exact_gelu: bool = False,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    rngs: nnx.Rngs,
) -> Mixer:
    """Mixer-B/16: 12 blocks of width 768; 59,880,472 parameters at the defaults."""
    return Mixer(
        width=768, depth=12, drop_path=drop_path, exact_gelu=exact_gelu, scan=scan,
        classes=classes, channels=channels, image_size=image_size, rngs=rngs,
    )  # fmt: skip
