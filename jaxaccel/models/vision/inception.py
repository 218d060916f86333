"""GoogLeNet of Szegedy et al. 2015 (https://arxiv.org/abs/1409.4842) and Inception-v3 (2016, https://arxiv.org/abs/1512.00567).

Blocks of parallel branches whose outputs are concatenated. Without the auxiliary heads, which serve training alone.
Each convolution is followed by BatchNorm, which adds 0.001 to the variance, and relu.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import ConvNorm, head, optional_dropout
from jaxaccel.models.layers.pooling import average_pool_3x3, max_pool_2x2, max_pool_3x3

Layer = Callable[[jax.Array], jax.Array]
_round_up_pool = partial(max_pool_3x3, padding=(0, 1))
_round_down_pool = partial(max_pool_3x3, padding=(0, 0))
_same_pool = partial(max_pool_3x3, stride=1)


class Conv(NamedTuple):
    """A convolution with BatchNorm and relu."""

    features: int
    size: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True


class Split(NamedTuple):
    """Convolutions of one input, whose outputs are concatenated."""

    convs: tuple[Conv, ...]


Branch = tuple[Conv | Split | Layer, ...]
"""Layers, one after the other; functions pool."""


class Block(nnx.Module):
    """Parallel branches, whose outputs are concatenated."""

    def __init__(self, features_in: int, *branches: Branch, rngs: nnx.Rngs) -> None:
        chains = [_chain(features_in, branch, rngs=rngs) for branch in branches]
        self.branches = nnx.List([chain for chain, _ in chains])
        self.features = sum(features for _, features in chains)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, H', W', features); H' and W' are halves where the branches stride."""
        return jnp.concatenate([branch(x) for branch in self.branches], axis=-1)


def _chain(features: int, branch: Branch, *, rngs: nnx.Rngs) -> tuple[nnx.Sequential, int]:
    """The layers of a branch on `features` channels, and how many channels come out."""
    layers: list[Layer] = []
    for layer in branch:
        if isinstance(layer, Conv):
            made = ConvNorm(
                features, layer.features, layer.size, stride=layer.stride, padded=layer.padded,
                activation=nnx.relu, epsilon=1e-3, rngs=rngs,
            )  # fmt: skip
            features = layer.features
        elif isinstance(layer, Split):
            made = Block(features, *((conv,) for conv in layer.convs), rngs=rngs)
            features = made.features
        else:
            made = layer
        layers.append(made)
    return nnx.Sequential(*layers), features


class Inception(nnx.Module):
    """A stem, blocks of branches with pooling between, global average, dropout, linear head.

    Convolutions stand at ``stem/layers/<i>/{conv,norm}`` and
    ``blocks/<i>/branches/<j>/layers/<k>/{conv,norm}``, where poolings count as layers and as blocks; a split
    convolution at ``.../layers/<k>/branches/<j>/layers/0/{conv,norm}``. Last comes ``head``.

    Args:
      stem: layers in a row.
      blocks: the branches of each block, or a pooling.
      dropout: probability of dropout before the head.
      classes: outputs.
      channels: channels of the images.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: `dropout` is not in [0, 1).
    """

    def __init__(
        self,
        stem: Branch,
        blocks: tuple[tuple[Branch, ...] | Layer, ...],
        *,
        dropout: float,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem, features = _chain(channels, stem, rngs=rngs)
        self.blocks = nnx.List([])
        for block in blocks:
            if callable(block):
                self.blocks.append(block)
                continue
            self.blocks.append(made := Block(features, *block, rngs=rngs))
            features = made.features
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x.mean(axis=(1, 2))))


def _googlenet_block(
    one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int
) -> tuple[Branch, ...]:
    """Table 1 of the first paper, its columns #1x1 to pool proj."""
    return (
        (Conv(one),),
        (Conv(reduce3), Conv(three, 3)),
        (Conv(reduce5), Conv(five, 3)),
        (_same_pool, Conv(pooled)),
    )


def _block_35(pooled: int) -> tuple[Branch, ...]:
    """At 35x35 pixels of an image of 299x299: figure 5 of the second paper."""
    return (
        (Conv(64),),
        (Conv(48), Conv(64, 5)),
        (Conv(64), Conv(96, 3), Conv(96, 3)),
        (average_pool_3x3, Conv(pooled)),
    )


def _block_17(inner: int) -> tuple[Branch, ...]:
    """At 17x17 pixels: figure 6, convolutions of 7x7 as 1x7 and 7x1."""
    row, column = (1, 7), (7, 1)
    return (
        (Conv(192),),
        (Conv(inner), Conv(inner, row), Conv(192, column)),
        (Conv(inner), Conv(inner, column), Conv(inner, row), Conv(inner, column), Conv(192, row)),
        (average_pool_3x3, Conv(192)),
    )


_TO_17 = (
    (Conv(384, 3, 2, False),),
    (Conv(64), Conv(96, 3), Conv(96, 3, 2, False)),
    (_round_down_pool,),
)
"""Half the image by convolutions and pooling alike: figure 10."""

_TO_8 = (
    (Conv(192), Conv(320, 3, 2, False)),
    (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, False)),
    (_round_down_pool,),
)

_SPLIT = Split((Conv(384, (1, 3)), Conv(384, (3, 1))))
_BLOCK_8 = (
    (Conv(320),),
    (Conv(384), _SPLIT),
    (Conv(448), Conv(384, 3), _SPLIT),
    (average_pool_3x3, Conv(192)),
)
"""At 8x8 pixels: figure 7."""


def googlenet(*, dropout: float = 0.2, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> Inception:
    """6,624,904 parameters with 1000 classes; where the paper has 5x5 convolutions, 3x3, as in torchvision."""
    blocks = (
        _googlenet_block(64, 96, 128, 16, 32, 32),
        _googlenet_block(128, 128, 192, 32, 96, 64),
        _round_up_pool,
        _googlenet_block(192, 96, 208, 16, 48, 64),
        _googlenet_block(160, 112, 224, 24, 64, 64),
        _googlenet_block(128, 128, 256, 24, 64, 64),
        _googlenet_block(112, 144, 288, 32, 64, 64),
        _googlenet_block(256, 160, 320, 32, 128, 128),
        max_pool_2x2,
        _googlenet_block(256, 160, 320, 32, 128, 128),
        _googlenet_block(384, 192, 384, 48, 128, 128),
    )
    stem = (Conv(64, 7, 2), _round_up_pool, Conv(64), Conv(192, 3), _round_up_pool)
    return Inception(stem, blocks, dropout=dropout, classes=classes, channels=channels, rngs=rngs)


def inception_v3(
    *, dropout: float = 0.5, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> Inception:
    """23,834,568 parameters with 1000 classes; for images of 299x299, of 75x75 at least."""
    stem = (
        *(Conv(32, 3, 2, False), Conv(32, 3, 1, False), Conv(64, 3), _round_down_pool),
        *(Conv(80), Conv(192, 3, 1, False), _round_down_pool),
    )
    blocks = (
        *(_block_35(32), _block_35(64), _block_35(64), _TO_17),
        *(_block_17(128), _block_17(160), _block_17(160), _block_17(192), _TO_8),
        *(_BLOCK_8, _BLOCK_8),
    )
    return Inception(stem, blocks, dropout=dropout, classes=classes, channels=channels, rngs=rngs)
