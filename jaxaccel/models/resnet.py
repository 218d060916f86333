"""The residual networks for ImageNet of He et al. 2016 (https://arxiv.org/abs/1512.03385), table 1.

With two changes that later work made standard: the bottleneck strides in its 3x3 convolution ("v1.5"), and
the last BatchNorm of each block starts at scale 0, so that each block starts as its shortcut (Goyal et al.
2017, https://arxiv.org/abs/1706.02677, 5.1).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features_in: int, features_out: int, size: int, *, stride: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        features_in,
        features_out,
        (size, size),
        strides=stride,
        padding=size // 2,  # on both sides also with stride 2, where SAME would pad only the far side
        use_bias=False,
        kernel_init=_he_normal,
        rngs=rngs,
    )


def _batch_norm(features: int, *, scale: float = 1.0, rngs: nnx.Rngs) -> nnx.BatchNorm:
    scale_init = nnx.initializers.constant(scale)
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, scale_init=scale_init, rngs=rngs)


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Maximum over overlapping 3x3 windows with stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C)."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


class ConvNorm(nnx.Module):
    """Convolution and BatchNorm: the stem, and the shortcut where the shape changes (option B)."""

    def __init__(
        self, features_in: int, features_out: int, size: int, *, stride: int, rngs: nnx.Rngs
    ) -> None:
        self.conv = _conv(features_in, features_out, size, stride=stride, rngs=rngs)
        self.norm = _batch_norm(features_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out)."""
        return self.norm(self.conv(x))


def _shortcut(features_in: int, features_out: int, stride: int, *, rngs: nnx.Rngs) -> ConvNorm | None:
    if stride == 1 and features_in == features_out:
        return None
    return ConvNorm(features_in, features_out, 1, stride=stride, rngs=rngs)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions of `width` channels and a shortcut; the first convolution has the stride."""

    expansion = 1

    def __init__(self, features_in: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(features_in, width, 3, stride=stride, rngs=rngs)
        self.norm1 = _batch_norm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, rngs=rngs)
        self.norm2 = _batch_norm(width, scale=0.0, rngs=rngs)
        self.shortcut = _shortcut(features_in, width, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, the last with 4 `width` channels, and a shortcut."""

    expansion = 4

    def __init__(self, features_in: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(features_in, width, 1, rngs=rngs)
        self.norm1 = _batch_norm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, stride=stride, rngs=rngs)
        self.norm2 = _batch_norm(width, rngs=rngs)
        self.conv3 = _conv(width, 4 * width, 1, rngs=rngs)
        self.norm3 = _batch_norm(4 * width, scale=0.0, rngs=rngs)
        self.shortcut = _shortcut(features_in, 4 * width, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), 4 * width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """7x7 convolution and 3x3 max pooling, both with stride 2, four stages, global average, linear head.

    Parameters stand at ``stem/{conv,norm}``, ``stages/<i>/<j>/{conv1,norm1,conv2,norm2}`` (bottlenecks also
    have ``conv3,norm3``), ``stages/<i>/<j>/shortcut/{conv,norm}`` and ``head``. Kernels start He normal
    (fan out), the head's normal with standard deviation 0.01, the last BatchNorm scale of each block 0.

    Args:
      blocks: residual blocks of each stage; every stage but the first halves the image.
      bottleneck: three-layer blocks with a fourfold widening instead of two-layer blocks.
      width: channels of the stem and of the first stage; each later stage has twice those of the one before.
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: stream ``params``.

    Raises:
      ValueError: a stage has no blocks.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        bottleneck: bool,
        width: int = 64,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not blocks or min(blocks) < 1:
            raise ValueError(f"ResNet: blocks must be one number >= 1 a stage, not {blocks!r}")
        self.stem = ConvNorm(channels, width, 7, stride=2, rngs=rngs)
        self.stages = nnx.List([])
        features = width
        block = Bottleneck if bottleneck else BasicBlock
        for i, count in enumerate(blocks):
            stack = nnx.List([])
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                stack.append(block(features, width * 2**i, stride, rngs=rngs))
                features = width * 2**i * block.expansion
            self.stages.append(stack)
        self.head = nnx.Linear(features, classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = max_pool_3x3(nnx.relu(self.stem(x)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(x.mean(axis=(1, 2)))


def resnet18(*, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> ResNet:
    """11,689,512 parameters with 1000 classes."""
    return ResNet((2, 2, 2, 2), bottleneck=False, classes=classes, channels=channels, rngs=rngs)


def resnet34(*, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> ResNet:
    """21,797,672 parameters with 1000 classes."""
    return ResNet((3, 4, 6, 3), bottleneck=False, classes=classes, channels=channels, rngs=rngs)


def resnet50(*, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> ResNet:
    """25,557,032 parameters with 1000 classes."""
    return ResNet((3, 4, 6, 3), bottleneck=True, classes=classes, channels=channels, rngs=rngs)
