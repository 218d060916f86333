"""The residual networks for CIFAR of He et al. 2016, "Deep Residual Learning for Image Recognition", 4.2.

https://arxiv.org/abs/1512.03385. A 3x3 convolution, three stages of n blocks with 16, 32 and 64 channels at
full, half and quarter resolution, a global average and a linear layer: 6n + 2 layers. Shortcuts have no
parameters (option A). Paddings are symmetric, so that published checkpoints fit weight by weight.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import ConvNorm, batch_norm, conv, head
from jaxaccel.models.layers.scan import sequence


def option_a_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """The identity, subsampled by `stride`, with zero channels added half before and half after.

    Args:
      x: (B, H, W, C).
      features: channels to return; ``features - C`` must be even and not negative.
      stride: step in height and width.

    Returns:
      (B, ceil(H/stride), ceil(W/stride), features), dtype of `x`.
    """
    if stride == 1 and features == x.shape[-1]:
        return x
    half = (features - x.shape[-1]) // 2
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (half, half)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with BatchNorm and an option A shortcut; the first convolution has the stride."""

    def __init__(self, features_in: int, features_out: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.stride = stride
        self.conv1 = conv(features_in, features_out, 3, stride=stride, rngs=rngs)
        self.norm1 = batch_norm(features_out, rngs=rngs)
        self.conv2 = conv(features_out, features_out, 3, rngs=rngs)
        self.norm2 = batch_norm(features_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, H/stride, W/stride, features_out)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        # As wide as y, whatever was removed: the first stage's channels lie in the middle of all streams and go
        # together; what is padded stays as it was. The channels that are padded cannot go: how many are left before
        # the middle, and how many behind it, no shape says.
        return nnx.relu(y + option_a_shortcut(x, y.shape[-1], self.stride))


class ResNetCifar(nnx.Module):
    """A residual network of depth 6n + 2 for images of about 32x32.

    Parameters stand at ``stem/{conv,norm}``, ``stages/<i>/<j>/{conv1,norm1,conv2,norm2}`` and ``head``.
    Kernels start He normal (fan out), the head's normal with standard deviation 0.01 (Goyal et al. 2017).

    Args:
      depth: 8, 14, 20, ...: layers with weights, shortcuts not counted.
      width: channels of the first stage (even; the paper has 16); the others have 2 and 4 times as many.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: stream ``params``.

    Raises:
      ValueError: `depth` is not 6n + 2 or `width` is odd.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 16,
        scan: bool = False,
        classes: int = 10,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"ResNetCifar: depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
        if width < 2 or width % 2:
            raise ValueError(
                f"ResNetCifar: width must be even (shortcuts pad half on each side), not {width}"
            )
        self.stem = ConvNorm(channels, width, 3, activation=nnx.relu, rngs=rngs)
        self.stages = nnx.List([])
        features = width
        for stage in range(3):
            features_out = width * 2**stage
            stack = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stack.append(BasicBlock(features, features_out, stride, rngs=rngs))
                features = features_out
            self.stages.append(sequence(stack, scan))
        self.head = head(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(x.mean(axis=(1, 2)))


def resnet20(*, scan: bool = False, classes: int = 10, channels: int = 3, rngs: nnx.Rngs) -> ResNetCifar:
    """269,722 parameters with 10 classes; the paper's test error on CIFAR-10 is 8.75%."""
    return ResNetCifar(20, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet32(*, scan: bool = False, classes: int = 10, channels: int = 3, rngs: nnx.Rngs) -> ResNetCifar:
    """464,154 parameters with 10 classes; the paper's test error on CIFAR-10 is 7.51%."""
    return ResNetCifar(32, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet44(*, scan: bool = False, classes: int = 10, channels: int = 3, rngs: nnx.Rngs) -> ResNetCifar:
    """658,586 parameters with 10 classes; the paper's test error on CIFAR-10 is 7.17%."""
    return ResNetCifar(44, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet56(*, scan: bool = False, classes: int = 10, channels: int = 3, rngs: nnx.Rngs) -> ResNetCifar:
    """853,018 parameters with 10 classes; the paper's test error on CIFAR-10 is 6.97%."""
    return ResNetCifar(56, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet110(*, scan: bool = False, classes: int = 10, channels: int = 3, rngs: nnx.Rngs) -> ResNetCifar:
    """1,727,962 parameters with 10 classes; the paper's test error on CIFAR-10 is 6.43%."""
    return ResNetCifar(110, scan=scan, classes=classes, channels=channels, rngs=rngs)
