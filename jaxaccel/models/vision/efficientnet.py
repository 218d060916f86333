"""EfficientNet of Tan & Le 2019 (https://arxiv.org/abs/1905.11946) and EfficientNetV2 (2021, https://arxiv.org/abs/2104.00298).

Inverted residual blocks whose squeeze-and-excite is as narrow as a quarter of the block's input; V2 begins with
blocks that fuse the first two convolutions into one. Paddings are symmetric, where the authors' SAME pads the far side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import (
    ConvNorm,
    InvertedResidual,
    StochasticDepth,
    drop_paths,
    head,
    optional_dropout,
)
from jaxaccel.models.layers.scan import sequence


class Stage(NamedTuple):
    """Blocks of equal width."""

    expansion: int
    size: int
    """Of the kernels."""
    stride: int
    """Of the first block."""
    features: int
    blocks: int
    fused: bool = False


B0 = (
    Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 24, 2), Stage(6, 5, 2, 40, 2), Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3), Stage(6, 5, 2, 192, 4), Stage(6, 3, 1, 320, 1),
)  # fmt: skip
"""Table 1 of the first paper."""

V2_S = (
    Stage(1, 3, 1, 24, 2, True), Stage(4, 3, 2, 48, 4, True), Stage(4, 3, 2, 64, 4, True),
    Stage(4, 3, 2, 128, 6), Stage(6, 3, 1, 160, 9), Stage(6, 3, 2, 256, 15),
)  # fmt: skip
"""Table 4 of the second."""


class FusedInvertedResidual(nnx.Module):
    """A convolution that widens and a 1x1 that narrows again; without widening a single one."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        wide: int,
        size: int,
        stride: int,
        drop_path: StochasticDepth,
        epsilon: float,
        rngs: nnx.Rngs,
    ) -> None:
        widens = wide != features_in
        self.expand = ConvNorm(
            features_in, wide if widens else features_out, size,
            stride=stride, activation=nnx.silu, epsilon=epsilon, rngs=rngs,
        )  # fmt: skip
        self.project = ConvNorm(wide, features_out, 1, epsilon=epsilon, rngs=rngs) if widens else None
        self.drop_path = drop_path if stride == 1 and features_in == features_out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out)."""
        y = self.expand(x)
        y = y if self.project is None else self.project(y)
        return y if self.drop_path is None else x + self.drop_path(y)


class EfficientNet(nnx.Module):
    """A stem, stages of inverted residual blocks, a 1x1 convolution, global average, dropout, linear head.

    Parameters stand at ``stem/{conv,norm}``, ``blocks/<i>/{expand,depthwise,project}/{conv,norm}`` (those that are
    there), ``blocks/<i>/squeeze_excite/{squeeze,excite}``, ``last/{conv,norm}`` and ``head``.

    Args:
      stages: of blocks.
      stem: channels of the first convolution.
      last: channels of the last one.
      epsilon: what BatchNorm adds to the variance.
      dropout: probability of dropout before the head.
      drop_path: probability of stochastic depth in the last block, in the others proportionally less.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: streams ``params``, and ``dropout`` if `dropout` or `drop_path` > 0.

    Raises:
      ValueError: there are no stages, or a probability is not in [0, 1).
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        stem: int = 32,
        last: int = 1280,
        epsilon: float = 1e-5,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not stages or min(stage.blocks for stage in stages) < 1:
            raise ValueError(f"EfficientNet: stages must have one or more blocks each, not {stages!r}")
        self.stem = ConvNorm(channels, stem, 3, stride=2, activation=nnx.silu, epsilon=epsilon, rngs=rngs)
        drops = iter(drop_paths(drop_path, sum(stage.blocks for stage in stages), rngs=rngs))
        features, blocks = stem, []
        for stage in stages:
            for i in range(stage.blocks):
                blocks.append(_block(stage, features, i, next(drops), epsilon=epsilon, rngs=rngs))
                features = stage.features
        self.blocks = sequence(blocks, scan)
        self.last = ConvNorm(features, last, 1, activation=nnx.silu, epsilon=epsilon, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(last, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.last(x).mean(axis=(1, 2))))


def _block(
    stage: Stage, features: int, i: int, drop_path: StochasticDepth, *, epsilon: float, rngs: nnx.Rngs
) -> nnx.Module:
    """The stage's block number `i`, on `features` channels."""
    wide, stride = stage.expansion * features, 1 if i else stage.stride
    if stage.fused:
        return FusedInvertedResidual(
            features, stage.features, wide=wide, size=stage.size, stride=stride, drop_path=drop_path,
            epsilon=epsilon, rngs=rngs,
        )  # fmt: skip
    return InvertedResidual(
        features, stage.features, wide=wide, size=stage.size, stride=stride, activation=nnx.silu,
        squeezed=max(1, features // 4), squeeze_activation=nnx.silu, drop_path=drop_path,
        epsilon=epsilon, rngs=rngs,
    )  # fmt: skip


def efficientnet_b0(
    *,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    rngs: nnx.Rngs,
) -> EfficientNet:
    """5,288,548 parameters with 1000 classes; for images of 224x224."""
    return EfficientNet(
        B0, dropout=dropout, drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs
    )


def efficientnet_v2_s(
    *,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    rngs: nnx.Rngs,
) -> EfficientNet:
    """21,458,488 parameters with 1000 classes; for images of 384x384, trained at 128 to 300."""
    return EfficientNet(
        V2_S, stem=24, epsilon=1e-3, dropout=dropout, drop_path=drop_path, scan=scan,
        classes=classes, channels=channels, rngs=rngs,
    )  # fmt: skip
