"""ConvNeXt of Liu et al. 2022 (https://arxiv.org/abs/2201.03545): convolutions, arranged as in a Transformer."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import StochasticDepth, drop_paths, grouped, truncated_normal
from jaxaccel.models.layers.scan import sequence

_conv = partial(nnx.Conv, kernel_init=truncated_normal)
_norm = partial(nnx.LayerNorm, epsilon=1e-6)


class Block(nnx.Module):
    """A depthwise 7x7 convolution, LayerNorm, two dense layers with GELU between, each channel scaled from 1e-6 on."""

    def __init__(self, features: int, *, drop_path: StochasticDepth, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.full((features,), 1e-6))
        self.depthwise = _conv(
            features, features, (7, 7), padding=3, feature_group_count=features, conv_general_dilated=grouped,
            rngs=rngs,
        )  # fmt: skip
        self.norm = _norm(features, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, kernel_init=truncated_normal, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, kernel_init=truncated_normal, rngs=rngs)
        self.drop_path = drop_path

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features) -> (B, H, W, features)."""
        y = self.norm(self.depthwise(x))
        y = self.down(nnx.gelu(self.up(y), approximate=False))
        return x + self.drop_path(y * self.scale[...])


class ConvNeXt(nnx.Module):
    """4x4 convolution with stride 4, stages with 2x2 convolutions between, global average, LayerNorm, linear head.

    Parameters stand at ``stem`` and ``stem_norm``, ``blocks/<i>/{depthwise,norm,up,down,scale}`` or, between stages,
    ``blocks/<i>/layers/{0,1}`` (LayerNorm, convolution), ``norm`` and ``head``. Kernels start truncated normal with
    standard deviation 0.02.

    Args:
      blocks: of each stage.
      widths: channels of each stage.
      drop_path: probability of stochastic depth in the last block, in the others proportionally less.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images; their size is free, what fills no 4x4 (then 2x2) pixels is not seen.
      rngs: streams ``params``, and ``dropout`` if `drop_path` > 0.

    Raises:
      ValueError: `blocks` and `widths` do not fit together or `drop_path` is not in [0, 1).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        drop_path: float = 0.0,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not blocks or len(blocks) != len(widths) or min(*blocks, *widths) < 1:
            raise ValueError(
                f"ConvNeXt: blocks={blocks!r} and widths={widths!r} must be as many numbers >= 1, one each a stage"
            )
        self.stem = _conv(channels, widths[0], (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.stem_norm = _norm(widths[0], rngs=rngs)
        drops = iter(drop_paths(drop_path, sum(blocks), rngs=rngs))
        layers: list[nnx.Module] = []
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            if i:
                layers.append(_downsample(widths[i - 1], width, rngs=rngs))
            layers += [Block(width, drop_path=next(drops), rngs=rngs) for _ in range(count)]
        self.blocks = sequence(layers, scan)
        self.norm = _norm(widths[-1], rngs=rngs)
        self.head = nnx.Linear(widths[-1], classes, kernel_init=truncated_normal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(axis=(1, 2))))


def _downsample(features_in: int, features_out: int, *, rngs: nnx.Rngs) -> nnx.Sequential:
    return nnx.Sequential(
        _norm(features_in, rngs=rngs),
        _conv(features_in, features_out, (2, 2), strides=2, padding="VALID", rngs=rngs),
    )


def convnext_tiny(
    *, drop_path: float = 0.1, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> ConvNeXt:
    """28,589,128 parameters with 1000 classes."""
    return ConvNeXt(
        (3, 3, 9, 3), (96, 192, 384, 768),
        drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs,
    )  # fmt: skip
