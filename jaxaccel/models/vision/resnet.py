"""The residual networks for ImageNet of He et al. 2016 (https://arxiv.org/abs/1512.03385), table 1, and their heirs.

With two changes that later work made standard: the bottleneck strides in its 3x3 convolution ("v1.5"), and
the last BatchNorm of each block starts at scale 0, so that each block starts as its shortcut (Goyal et al.
2017, https://arxiv.org/abs/1706.02677, 5.1).

The heirs are options of `ResNet`: ResNeXt (Xie et al. 2017, https://arxiv.org/abs/1611.05431) groups the 3x3
convolutions, SE-ResNet (Hu et al. 2018, https://arxiv.org/abs/1709.01507) scales channels, ResNet-D (He et al. 2019,
https://arxiv.org/abs/1812.01187) loses no pixel in stem and shortcuts, ResNet-RS (Bello et al. 2021,
https://arxiv.org/abs/2103.07579) has both and no max pooling.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import (
    ConvNorm,
    SqueezeExcite,
    StochasticDepth,
    batch_norm,
    conv,
    divisible,
    drop_paths,
    head,
    optional_dropout,
)
from jaxaccel.models.layers.pooling import average_pool_2x2, max_pool_3x3
from jaxaccel.models.layers.scan import sequence


class Shortcut(nnx.Module):
    """What is added to a block's output where the shape changes: a 1x1 convolution (option B) and BatchNorm.

    `averages`: 2x2 means halve the image, and the convolution need not skip three of four pixels (ResNet-D).
    """

    def __init__(
        self, features_in: int, features_out: int, stride: int, *, averages: bool, rngs: nnx.Rngs
    ) -> None:
        self.averages = averages and stride == 2
        self.conv = conv(features_in, features_out, 1, stride=1 if self.averages else stride, rngs=rngs)
        self.norm = batch_norm(features_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out)."""
        return self.norm(self.conv(average_pool_2x2(x) if self.averages else x))


class Residual(nnx.Module):
    """What basic blocks and bottlenecks share: how a branch joins its input.

    Args:
      features_in: channels of the input.
      features_out: channels of the output.
      stride: 1, or 2 to halve the image.
      averages: of the `Shortcut`.
      squeezed: width of the squeeze-and-excite; 0 for none.
      drop_path: stochastic depth of the branch.
      rngs: stream ``params``.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        stride: int,
        *,
        averages: bool = False,
        squeezed: int = 0,
        drop_path: StochasticDepth | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.squeeze_excite = SqueezeExcite(features_out, squeezed, rngs=rngs) if squeezed else None
        equal = stride == 1 and features_in == features_out
        self.shortcut = (
            None if equal else Shortcut(features_in, features_out, stride, averages=averages, rngs=rngs)
        )
        self.drop_path = drop_path

    def join(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The block's output from its input and the branch's output."""
        y = y if self.squeeze_excite is None else self.squeeze_excite(y)
        y = y if self.drop_path is None else self.drop_path(y)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class BasicBlock(Residual):
    """Two 3x3 convolutions of `width` channels; the first has the stride and the groups."""

    expansion = 1

    def __init__(
        self,
        features_in: int,
        width: int,
        inner: int,
        stride: int,
        *,
        groups: int = 1,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        self.conv1 = conv(features_in, inner, 3, stride=stride, groups=groups, rngs=rngs)
        self.norm1 = batch_norm(inner, rngs=rngs)
        self.conv2 = conv(inner, width, 3, rngs=rngs)
        self.norm2 = batch_norm(width, scale=0.0, rngs=rngs)
        super().__init__(features_in, width, stride, rngs=rngs, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        return self.join(x, self.norm2(self.conv2(y)))


class Bottleneck(Residual):
    """1x1, grouped 3x3 (with the stride), both of `inner` channels, and 1x1 convolutions to 4 `width` channels."""

    expansion = 4

    def __init__(
        self,
        features_in: int,
        width: int,
        inner: int,
        stride: int,
        *,
        groups: int = 1,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        self.conv1 = conv(features_in, inner, 1, rngs=rngs)
        self.norm1 = batch_norm(inner, rngs=rngs)
        self.conv2 = conv(inner, inner, 3, stride=stride, groups=groups, rngs=rngs)
        self.norm2 = batch_norm(inner, rngs=rngs)
        self.conv3 = conv(inner, 4 * width, 1, rngs=rngs)
        self.norm3 = batch_norm(4 * width, scale=0.0, rngs=rngs)
        super().__init__(features_in, 4 * width, stride, rngs=rngs, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), 4 * width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        return self.join(x, self.norm3(self.conv3(y)))


class ResNet(nnx.Module):
    """A stem that quarters the image, four stages of residual blocks, global average, linear head.

    Parameters stand at ``stem/{conv,norm}``, ``stages/<i>/<j>/{conv1,norm1,conv2,norm2}`` (bottlenecks also
    have ``conv3,norm3``), ``stages/<i>/<j>/shortcut/{conv,norm}``, ``stages/<i>/<j>/squeeze_excite/{squeeze,excite}``
    and ``head``; a deep stem at ``stem/layers/<i>/{conv,norm}``, a pooling with weights at ``pool/{conv,norm}``.
    Kernels start He normal (fan out), the head's normal with standard deviation 0.01, the last BatchNorm scale of each
    block 0.

    Args:
      blocks: residual blocks of each stage; every stage but the first halves the image.
      bottleneck: three-layer blocks with a fourfold widening instead of two-layer blocks.
      width: channels of the stem and of the first stage; each later stage has twice those of the one before.
      stem: one 7x7 convolution with stride 2, or three of 3x3, of which the first has it (ResNet-D).
      pool: what halves the image behind the stem: a 3x3 max pooling, or a 3x3 convolution (ResNet-RS).
      groups: of the (first) 3x3 convolution of a block (ResNeXt).
      group_width: channels of a group in the first stage; default `width`.
      squeeze: width of the squeeze-and-excite per channels of the block; 0 for none (SE-ResNet: 1/16).
      average_shortcut: shortcuts average before their convolution (ResNet-D).
      dropout: probability of dropout before the head.
      drop_path: probability of stochastic depth in the last block, in the others proportionally less.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: streams ``params``, and ``dropout`` if `dropout` or `drop_path` > 0.

    Raises:
      ValueError: a stage has no blocks, there is no such stem or pooling, a width or number of groups is below 1,
        `squeeze` is negative, or a probability is not in [0, 1).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        bottleneck: bool,
        width: int = 64,
        stem: Literal["7x7", "3x3"] = "7x7",
        pool: Literal["max", "conv"] = "max",
        groups: int = 1,
        group_width: int | None = None,
        squeeze: float = 0.0,
        average_shortcut: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not blocks or min(blocks) < 1:
            raise ValueError(f"ResNet: blocks must be one number >= 1 a stage, not {blocks!r}")
        if stem not in ("7x7", "3x3") or pool not in ("max", "conv"):
            raise ValueError(
                f"ResNet: stem={stem!r} must be '7x7' or '3x3', and pool={pool!r} 'max' or 'conv'"
            )
        if min(width, groups, group_width or width) < 1 or squeeze < 0:
            raise ValueError(
                f"ResNet: width={width}, groups={groups} and group_width={group_width} must be at least 1, "
                f"squeeze={squeeze} at least 0"
            )
        self.stem = _stem(stem, channels, width, rngs=rngs)
        self.pool = (
            max_pool_3x3
            if pool == "max"
            else ConvNorm(width, width, 3, stride=2, activation=nnx.relu, rngs=rngs)
        )
        drops = iter(drop_paths(drop_path, sum(blocks), rngs=rngs))
        kind = Bottleneck if bottleneck else BasicBlock
        block = partial(kind, groups=groups, averages=average_shortcut, rngs=rngs)
        self.stages = nnx.List([])
        features = width
        for i, count in enumerate(blocks):
            stage, inner = [], groups * (group_width or width) * 2**i
            out = width * 2**i * kind.expansion
            squeezed = divisible(out * squeeze) if squeeze else 0
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(
                    block(features, width * 2**i, inner, stride, squeezed=squeezed, drop_path=next(drops))
                )
                features = out
            self.stages.append(sequence(stage, scan))
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.pool(self.stem(x))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(self.dropout(x.mean(axis=(1, 2))))


def _stem(kind: str, channels: int, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
    layer = partial(ConvNorm, activation=nnx.relu, rngs=rngs)
    if kind == "7x7":
        return layer(channels, width, 7, stride=2)
    half = width // 2
    return nnx.Sequential(layer(channels, half, 3, stride=2), layer(half, half, 3), layer(half, width, 3))
