"""MobileNets: networks of inverted residual blocks for phones.

MobileNetV2 is that of Sandler et al. 2018 (https://arxiv.org/abs/1801.04381), table 2; MobileNetV3 that of Howard et
al. 2019 (https://arxiv.org/abs/1905.02244), tables 1 and 2.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import (
    Activation,
    ConvNorm,
    InvertedResidual,
    divisible,
    head,
    optional_dropout,
)
from jaxaccel.models.layers.scan import sequence

STAGES_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""Table 2 of the first paper."""


class Block(NamedTuple):
    """An inverted residual block of MobileNetV3."""

    size: int
    """Of the depthwise kernel."""
    wide: int
    """Channels within."""
    features: int
    squeezes: bool
    activation: Activation
    stride: int


_RE, _HS = nnx.relu, nnx.hard_swish
LARGE = (
    Block(3, 16, 16, False, _RE, 1), Block(3, 64, 24, False, _RE, 2), Block(3, 72, 24, False, _RE, 1),
    Block(5, 72, 40, True, _RE, 2), Block(5, 120, 40, True, _RE, 1), Block(5, 120, 40, True, _RE, 1),
    Block(3, 240, 80, False, _HS, 2), Block(3, 200, 80, False, _HS, 1), Block(3, 184, 80, False, _HS, 1),
    Block(3, 184, 80, False, _HS, 1), Block(3, 480, 112, True, _HS, 1), Block(3, 672, 112, True, _HS, 1),
    Block(5, 672, 160, True, _HS, 2), Block(5, 960, 160, True, _HS, 1), Block(5, 960, 160, True, _HS, 1),
)  # fmt: skip
"""Table 1 of the second paper."""
SMALL = (
    Block(3, 16, 16, True, _RE, 2), Block(3, 72, 24, False, _RE, 2), Block(3, 88, 24, False, _RE, 1),
    Block(5, 96, 40, True, _HS, 2), Block(5, 240, 40, True, _HS, 1), Block(5, 240, 40, True, _HS, 1),
    Block(5, 120, 48, True, _HS, 1), Block(5, 144, 48, True, _HS, 1), Block(5, 288, 96, True, _HS, 2),
    Block(5, 576, 96, True, _HS, 1), Block(5, 576, 96, True, _HS, 1),
)  # fmt: skip
"""Table 2."""


class MobileNetV2(nnx.Module):
    """A stem, seven stages of inverted residual blocks, a 1x1 convolution, global average, dropout, linear head.

    Parameters stand at ``stem/{conv,norm}``, ``blocks/<i>/{expand,depthwise,project}/{conv,norm}`` (the first block has
    no ``expand``), ``last/{conv,norm}`` and ``head``. Convolutions start He normal (fan out), the head's kernel normal
    with standard deviation 0.01.

    Args:
      stages: (expansion, channels, blocks, stride of the first block) of each; default those of the paper.
      width: multiplies the channels of all layers but the last convolution, which it only widens.
      dropout: probability of dropout before the head.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: `width` is not positive or `dropout` not in [0, 1).
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int]] = STAGES_V2,
        *,
        width: float = 1.0,
        dropout: float = 0.2,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not width > 0:
            raise ValueError(f"MobileNetV2: width={width} must be positive")
        features = divisible(32 * width)
        self.stem = ConvNorm(channels, features, 3, stride=2, activation=nnx.relu6, rngs=rngs)
        blocks = []
        for expansion, wanted, count, stride in stages:
            for i in range(count):
                out = divisible(wanted * width)
                wide = expansion * features
                blocks.append(
                    InvertedResidual(features, out, wide=wide, stride=1 if i else stride, rngs=rngs)
                )
                features = out
        self.blocks = sequence(blocks, scan)
        wide = divisible(1280 * max(1.0, width))
        self.last = ConvNorm(features, wide, 1, activation=nnx.relu6, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(wide, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.last(x).mean(axis=(1, 2))))


class MobileNetV3(nnx.Module):
    """As MobileNetV2, with squeeze-and-excite, hard swish, and a dense layer behind the global average.

    Parameters stand at ``stem/{conv,norm}``, ``blocks/<i>/{expand,depthwise,project}/{conv,norm}``,
    ``blocks/<i>/squeeze_excite/{squeeze,excite}``, ``last/{conv,norm}``, ``hidden`` and ``head``. BatchNorm adds 0.001
    to the variance.

    Args:
      blocks: those of the middle.
      hidden: width of the dense layer.
      width: multiplies the channels of all layers but the dense one, which it only widens.
      dropout: probability of dropout before the head.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: there are no blocks, `width` is not positive or `dropout` not in [0, 1).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        hidden: int,
        width: float = 1.0,
        dropout: float = 0.2,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not blocks:
            raise ValueError("MobileNetV3: blocks must be one or more")
        if not width > 0:
            raise ValueError(f"MobileNetV3: width={width} must be positive")
        layer = partial(ConvNorm, activation=nnx.hard_swish, epsilon=1e-3, rngs=rngs)
        features = divisible(16 * width)
        self.stem = layer(channels, features, 3, stride=2)
        made = []
        for block in blocks:
            wide, out = divisible(block.wide * width), divisible(block.features * width)
            made.append(
                InvertedResidual(
                    features,
                    out,
                    wide=wide,
                    size=block.size,
                    stride=block.stride,
                    activation=block.activation,
                    squeezed=divisible(wide / 4) if block.squeezes else 0,
                    gate=nnx.hard_sigmoid,
                    epsilon=1e-3,
                    rngs=rngs,
                )
            )
            features = out
        self.blocks = sequence(made, scan)
        self.last = layer(features, 6 * features, 1)
        hidden = divisible(hidden * max(1.0, width))
        self.hidden = head(6 * features, hidden, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = nnx.hard_swish(self.hidden(self.last(x).mean(axis=(1, 2))))
        return self.head(self.dropout(x))


def mobilenet_v2(
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    rngs: nnx.Rngs,
) -> MobileNetV2:
    """3,504,872 parameters with 1000 classes at width 1."""
    return MobileNetV2(width=width, dropout=dropout, scan=scan, classes=classes, channels=channels, rngs=rngs)


def mobilenet_v3_large(
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    rngs: nnx.Rngs,
) -> MobileNetV3:
    """5,483,032 parameters with 1000 classes at width 1."""
    return MobileNetV3(
        LARGE,
        hidden=1280,
        width=width,
        dropout=dropout,
        scan=scan,
        classes=classes,
        channels=channels,
        rngs=rngs,
    )


def mobilenet_v3_small(
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    rngs: nnx.Rngs,
) -> MobileNetV3:
    """2,542,856 parameters with 1000 classes at width 1."""
    return MobileNetV3(
        SMALL,
        hidden=1024,
        width=width,
        dropout=dropout,
        scan=scan,
        classes=classes,
        channels=channels,
        rngs=rngs,
    )
