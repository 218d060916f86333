"""MobileNetV2 of Sandler et al. 2018 (https://arxiv.org/abs/1801.04381), table 2.

Inverted residual blocks: a 1x1 convolution widens, a depthwise 3x3 filters, a 1x1 without an activation narrows; the
narrow ends are added where their shapes are equal.
"""

import jax
from flax import nnx

_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""(expansion, channels, blocks, stride of the first block) of each stage."""


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` that is nearest to `channels`, at least `by` and at most 10% less than it."""
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest if nearest >= 0.9 * channels else nearest + by


class ConvNorm(nnx.Module):
    """A convolution and BatchNorm; `groups` = `features_in` makes it depthwise."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            features_in,
            features_out,
            (size, size),
            strides=stride,
            padding=size // 2,  # on both sides also with stride 2, where SAME would pad only the far side
            feature_group_count=groups,
            use_bias=False,
            kernel_init=_he_normal,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(features_out, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out)."""
        return self.norm(self.conv(x))


class InvertedResidual(nnx.Module):
    """Widen, filter, narrow; `expand` is None where nothing is widened."""

    def __init__(
        self, features_in: int, features_out: int, *, stride: int, expansion: int, rngs: nnx.Rngs
    ) -> None:
        wide = features_in * expansion
        self.expand = None if expansion == 1 else ConvNorm(features_in, wide, 1, rngs=rngs)
        self.depthwise = ConvNorm(wide, wide, 3, stride=stride, groups=wide, rngs=rngs)
        self.project = ConvNorm(wide, features_out, 1, rngs=rngs)
        self.residual = stride == 1 and features_in == features_out

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out)."""
        y = x if self.expand is None else nnx.relu6(self.expand(x))
        y = self.project(nnx.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """A stem, seven stages of inverted residual blocks, a 1x1 convolution, global average, dropout, linear head.

    Parameters stand at ``stem/{conv,norm}``, ``blocks/<i>/{expand,depthwise,project}/{conv,norm}`` (the first block has
    no ``expand``), ``last/{conv,norm}`` and ``head``. Convolutions start He normal (fan out), the head's kernel normal
    with standard deviation 0.01.

    Args:
      width: multiplies the channels of all layers but the last convolution, which it only widens.
      dropout: probability of dropout before the head.
      classes: outputs.
      channels: channels of the images; their size is free.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: `width` is not positive.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        dropout: float = 0.2,
        classes: int = 1000,
        channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if not width > 0:
            raise ValueError(f"MobileNetV2: width={width} must be positive")
        features = divisible(32 * width)
        self.stem = ConvNorm(channels, features, 3, stride=2, rngs=rngs)
        self.blocks = nnx.List([])
        for expansion, wanted, count, stride in STAGES:
            for i in range(count):
                out = divisible(wanted * width)
                self.blocks.append(
                    InvertedResidual(features, out, stride=1 if i else stride, expansion=expansion, rngs=rngs)
                )
                features = out
        wide = divisible(1280 * max(1.0, width))
        self.last = ConvNorm(features, wide, 1, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.head = nnx.Linear(wide, classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        x = nnx.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.relu6(self.last(x)).mean(axis=(1, 2))
        return self.head(self.dropout(x))


def mobilenet_v2(
    *, width: float = 1.0, dropout: float = 0.2, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> MobileNetV2:
    """3,504,872 parameters with 1000 classes at width 1."""
    return MobileNetV2(width=width, dropout=dropout, classes=classes, channels=channels, rngs=rngs)
