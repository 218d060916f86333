"""Broadcasted residual learning for words (Kim et al. 2021, https://arxiv.org/abs/2106.04140).

Most of a block is computed on the mean over the frequencies, and is broadcast over them again.
"""

from collections.abc import Sequence

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import batch_norm, head
from jaxaccel.models.layers.frames import TimeConv, zero_padding
from jaxaccel.models.layers.tokens import masked_mean

STAGES = ((8, 2, 1, 1), (12, 2, 2, 2), (16, 4, 2, 4), (20, 4, 1, 8))
"""Channels at scale 1, blocks, stride of the frequencies, and dilation of the frames of each stage of the paper."""


class FrameNorm(nnx.Module):
    """BatchNorm of neighboring frequency bands (Chang et al. 2021, https://arxiv.org/abs/2103.13620), of real frames.

    Args:
      features: channels.
      groups: of bands, each with its own statistics, scales and shifts.
      rngs: stream ``params``.
    """

    def __init__(self, features: int, groups: int = 1, *, rngs: nnx.Rngs) -> None:
        self.norm = batch_norm(groups * features, rngs=rngs)
        self.groups = groups

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, F, features) -> the same; the batch's statistics are those of frames in `mask` (B, T)."""
        *outer, bands, features = x.shape
        split = (*outer, self.groups, bands // self.groups, features)
        x = x.reshape(split).swapaxes(-3, -2)
        shape = x.shape
        x = self.norm(x.reshape(*outer, -1, self.groups * features), mask=mask[..., None, None])
        return x.reshape(shape).swapaxes(-3, -2).reshape(*outer, bands, features)


class BroadcastBlock(nnx.Module):
    """What a convolution over frequencies finds, and of its mean over them what a convolution over time finds.

    Both are added, and so is the input where it has the same shape (the paper's normal block).

    Args:
      features_in: channels.
      features_out: channels of the outputs.
      stride: of the frequencies.
      dilation: of the frames.
      groups: of bands that are normalized together.
      dropout: probability of dropout of channels behind the convolution over time.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        stride: int,
        dilation: int,
        groups: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.residual = features_in == features_out and stride == 1
        wide = features_out
        self.expand = None if self.residual else TimeConv(features_in, wide, 1, rngs=rngs)
        self.expand_norm = None if self.residual else FrameNorm(wide, rngs=rngs)
        self.over_bands = TimeConv(wide, wide, (1, 3), strides=(1, stride), groups=wide, rngs=rngs)
        self.bands_norm = FrameNorm(wide, groups, rngs=rngs)
        self.over_time = TimeConv(wide, wide, (3, 1), dilation=dilation, groups=wide, rngs=rngs)
        self.time_norm = FrameNorm(wide, rngs=rngs)
        self.project = TimeConv(wide, wide, 1, rngs=rngs)
        # Whole channels: what is drawn does not depend on the number of frames.
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2), rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, F, features_in) -> (B, T, ceil(F / stride), features_out)."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = nnx.relu(self.expand_norm(self.expand(y, mask)[0], mask))
        y = self.bands_norm(self.over_bands(y, mask)[0], mask)
        z, _ = self.over_time(y.mean(axis=2, keepdims=True), mask)
        z = self.dropout(self.project(nnx.swish(self.time_norm(z, mask)), mask)[0])
        return nnx.relu(x + y + z if self.residual else y + z)


class BcResNet(nnx.Module):
    """A BC-ResNet.

    Norms are the paper's BatchNorms, whose statistics are those of real frames alone: in training they depend on the
    sounds of the batch and never on padding, and in inference they are constants. They are kept because the paper's
    results rest on statistics of each group of bands, which a norm of single frames lacks. The mean over time is of
    real frames too.

    The paper has 40 bands, which stay divisible by its 5 groups; with other numbers there are as many groups, at most
    5, as divide the bands. Parameters stand at ``stem/conv``, ``stem_norm/norm``,
    ``blocks/<i>/{over_bands,over_time,project}/conv``, ``blocks/<i>/{bands_norm,time_norm}/norm``, where a stage begins
    also ``blocks/<i>/expand/conv`` and ``blocks/<i>/expand_norm/norm``, then ``last/conv``, ``widen/conv``,
    ``widen_norm/norm`` and ``head``.

    Args:
      scale: of the channels: 1, 1.5, 2, 3, 6 and 8 in the paper.
      stages: channels at scale 1, blocks, stride of the frequencies, and dilation of the frames of each.
      dropout: probability of dropout in each block.
      classes: outputs.
      channels: frequency bands of a frame.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: `scale` is not above 0, `dropout` not in [0, 1), or there are fewer than 8 bands.
    """

    def __init__(
        self,
        *,
        scale: float = 1.0,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        dropout: float = 0.1,
        classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ) -> None:
        if scale <= 0 or not 0 <= dropout < 1:
            raise ValueError(f"BcResNet: {scale=} must be above 0 and {dropout=} in [0, 1)")
        if channels < 8:
            raise ValueError(f"BcResNet: {channels=} must be at least 8 bands")
        width, bands = _scaled(16, scale), -(-channels // 2)
        self.stem = TimeConv(1, width, 5, strides=(1, 2), rngs=rngs)
        self.stem_norm = FrameNorm(width, rngs=rngs)
        blocks = []
        for features, count, stride, dilation in stages:
            for i in range(count):
                step, wide = stride if i == 0 else 1, _scaled(features, scale)
                bands = -(-bands // step)
                block = BroadcastBlock(
                    width,
                    wide,
                    stride=step,
                    dilation=dilation,
                    groups=max(n for n in range(1, 6) if bands % n == 0),
                    dropout=dropout,
                    rngs=rngs,
                )
                blocks.append(block)
                width = wide
        self.blocks = nnx.List(blocks)
        window = (5, min(5, bands - 1 + bands % 2))
        self.last = TimeConv(width, width, window, groups=width, pad_bands=False, rngs=rngs)
        self.widen = TimeConv(width, _scaled(32, scale), 1, rngs=rngs)
        self.widen_norm = FrameNorm(_scaled(32, scale), rngs=rngs)
        self.head = head(_scaled(32, scale), classes, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits (B, classes) of `features` (B, T, channels) where `mask` (B, T) is True."""
        x, _ = self.stem(zero_padding(features, mask)[..., None], mask)
        x = nnx.relu(self.stem_norm(x, mask))
        for block in self.blocks:
            x = block(x, mask)
        x, _ = self.last(x, mask)
        x = nnx.relu(self.widen_norm(self.widen(x, mask)[0], mask))
        return self.head(masked_mean(x.mean(axis=2), mask))


def _scaled(channels: int, scale: float) -> int:
    return max(1, round(channels * scale))


def bc_resnet_1(*, dropout: float = 0.1, classes: int, channels: int = 40, rngs: nnx.Rngs) -> BcResNet:
    """BC-ResNet-1: with 40 channels 33 * classes + 8,836 parameters."""
    return BcResNet(scale=1.0, dropout=dropout, classes=classes, channels=channels, rngs=rngs)


def bc_resnet_3(*, dropout: float = 0.1, classes: int, channels: int = 40, rngs: nnx.Rngs) -> BcResNet:
    """BC-ResNet-3: with 40 channels 97 * classes + 53,004 parameters."""
    return BcResNet(scale=3.0, dropout=dropout, classes=classes, channels=channels, rngs=rngs)


def bc_resnet_8(*, dropout: float = 0.1, classes: int, channels: int = 40, rngs: nnx.Rngs) -> BcResNet:
    """BC-ResNet-8: with 40 channels 257 * classes + 317,984 parameters."""
    return BcResNet(scale=8.0, dropout=dropout, classes=classes, channels=channels, rngs=rngs)
