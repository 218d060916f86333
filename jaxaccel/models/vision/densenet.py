"""The densely connected networks of Huang et al. 2017 (https://arxiv.org/abs/1608.06993), table 1."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import ConvNorm, batch_norm, conv, head, optional_dropout
from jaxaccel.models.layers.pooling import max_pool_3x3


class DenseLayer(nnx.Module):
    """`growth` new channels, from all those before by a 1x1 and a 3x3 convolution, each behind BatchNorm and relu."""

    def __init__(self, features: int, growth: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = batch_norm(features, rngs=rngs)
        self.conv1 = conv(features, 4 * growth, 1, rngs=rngs)
        self.norm2 = batch_norm(4 * growth, rngs=rngs)
        self.conv2 = conv(4 * growth, growth, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features) -> (B, H, W, features + growth)."""
        y = self.conv1(nnx.relu(self.norm1(x)))
        y = self.conv2(nnx.relu(self.norm2(y)))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nnx.Module):
    """BatchNorm, relu, a 1x1 convolution to half the channels and 2x2 means; an odd last row or column is lost."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        self.norm = batch_norm(features, rngs=rngs)
        self.conv = conv(features, features // 2, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features) -> (B, H // 2, W // 2, features // 2)."""
        return nnx.avg_pool(self.conv(nnx.relu(self.norm(x))), (2, 2), (2, 2))


class DenseNet(nnx.Module):
    """7x7 convolution and 3x3 max pooling, dense blocks with transitions between, global average, linear head.

    Parameters stand at ``stem/{conv,norm}``, ``blocks/<i>/{norm1,conv1,norm2,conv2}`` or, a transition,
    ``blocks/<i>/{norm,conv}``, ``norm`` and ``head``. No two layers are equal: there is nothing to scan.

    Args:
      blocks: layers of each dense block.
      growth: channels that each layer adds; the stem has twice as many.
      dropout: probability of dropout before the head.
      classes: outputs.
      channels: channels of the images; their size is free, from 29 pixels on with four blocks.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: a block has no layers, `growth` is below 1 or `dropout` is not in [0, 1).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        growth: int = 32,
        dropout: float = 0.0,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not blocks or min(blocks) < 1:
            raise ValueError(f"DenseNet: blocks must be one number >= 1 a block, not {blocks!r}")
        if growth < 1:
            raise ValueError(f"DenseNet: growth must be at least 1, not {growth}")
        features = 2 * growth
        self.stem = ConvNorm(channels, features, 7, stride=2, activation=nnx.relu, rngs=rngs)
        self.blocks = nnx.List([])
        for i, count in enumerate(blocks):
            if i:
                self.blocks.append(Transition(features, rngs=rngs))
                features //= 2
            for _ in range(count):
                self.blocks.append(DenseLayer(features, growth, rngs=rngs))
                features += growth
        self.norm = batch_norm(features, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = max_pool_3x3(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(nnx.relu(self.norm(x)).mean(axis=(1, 2))))


def densenet121(*, dropout: float = 0.0, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> DenseNet:
    """7,978,856 parameters with 1000 classes."""
    return DenseNet((6, 12, 24, 16), dropout=dropout, classes=classes, channels=channels, rngs=rngs)
