"""Deep Speech 2 (Amodei et al. 2015, https://arxiv.org/abs/1512.02595): convolutions, then GRUs in both directions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import head, optional_dropout
from jaxaccel.models.layers.frames import TimeConv, check_subsampling, zero_padding
from jaxaccel.models.layers.recurrent import Gru

CLIP = 20.0
"""The largest number behind a convolution, as in the paper."""


class DeepSpeech(nnx.Module):
    """Two convolutions over time and frequency and layers of bidirectional GRUs, whose directions are added.

    Where the paper normalizes over the frames of a whole batch (BatchNorm and its sequence-wise form), here each frame
    is normalized by itself (LayerNorm): no statistic sees padding or another sound, in training too. Both convolutions
    halve the frequencies.

    Parameters stand at ``convs/<i>/conv`` (frames, bands, in, filters), ``norms/<i>`` (of a frame's bands and
    filters together), ``forward/<i>``, ``backward/<i>`` (`jaxaccel.models.layers.recurrent.Gru`), ``between/<i>``
    (LayerNorms before the second layer of GRUs and those after it), ``norm`` and ``head``.

    Args:
      filters: outputs of a convolution.
      windows: (frames, bands) of each of the two convolutions, odd.
      features: outputs of a layer of GRUs.
      depth: layers of GRUs.
      dropout: probability of dropout before each layer of GRUs and before the head.
      classes: outputs, the blank among them.
      channels: frequency bands of a frame.
      subsampling: frames of an output: 1, 2 or 4.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: a size is below 1, there are not two odd windows, or `subsampling` is none of those.
    """

    def __init__(
        self,
        *,
        filters: int = 16,
        windows: Sequence[tuple[int, int]] = ((11, 11), (5, 11)),
        features: int = 128,
        depth: int = 3,
        dropout: float = 0.1,
        classes: int,
        channels: int,
        subsampling: int = 2,
        rngs: nnx.Rngs,
    ) -> None:
        if min(filters, features, depth) < 1:
            raise ValueError(f"DeepSpeech: {filters=}, {features=} and {depth=} must be at least 1")
        if len(windows) != 2 or any(size < 1 or size % 2 == 0 for window in windows for size in window):
            raise ValueError(f"DeepSpeech: {windows=} must be two pairs of odd numbers")
        check_subsampling(subsampling, "DeepSpeech")
        bands = [-(-channels // 2), -(-channels // 4)]
        strides = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[subsampling]
        self.convs = nnx.List(
            [
                TimeConv(n, filters, window, strides=(stride, 2), rngs=rngs)
                for n, window, stride in zip((1, filters), windows, strides, strict=True)
            ]
        )
        self.norms = nnx.List([nnx.LayerNorm(n * filters, epsilon=1e-6, rngs=rngs) for n in bands])
        inputs = [bands[-1] * filters, *[features] * (depth - 1)]
        self.forward = nnx.List([Gru(n, features, rngs=rngs) for n in inputs])
        self.backward = nnx.List([Gru(n, features, reverse=True, rngs=rngs) for n in inputs])
        self.between = nnx.List([nnx.LayerNorm(features, epsilon=1e-6, rngs=rngs) for _ in range(depth - 1)])
        self.norm = nnx.LayerNorm(features, epsilon=1e-6, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(features, classes, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits (B, ceil(T / subsampling), classes) of `features` (B, T, channels) where `mask` (B, T) is True."""
        x = zero_padding(features, mask)[..., None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y, mask = conv(x, mask)
            flat = norm(y.reshape(*y.shape[:2], -1))
            x = jnp.clip(flat, 0, CLIP).reshape(y.shape)
        x = x.reshape(*x.shape[:2], -1)
        norms = (None, *self.between)
        for norm, forward, backward in zip(norms, self.forward, self.backward, strict=True):
            x = self.dropout(x if norm is None else norm(x))
            x = forward(x, mask)[0] + backward(x, mask)[0]
        return self.head(self.dropout(self.norm(x)))


def deep_speech(
    *,
    filters: int = 16,
    windows: Sequence[tuple[int, int]] = ((11, 11), (5, 11)),
    features: int = 128,
    depth: int = 3,
    dropout: float = 0.1,
    classes: int,
    channels: int,
    subsampling: int = 2,
    rngs: nnx.Rngs,
) -> DeepSpeech:
    """Two convolutions of 16 filters and three layers of GRUs of 128; the paper's have 32 and seven of 1,760 or more.

    With 80 channels 129 * classes + 760,592 parameters. Dropout is 0.1.
    """
    return DeepSpeech(
        filters=filters,
        windows=windows,
        features=features,
        depth=depth,
        dropout=dropout,
        classes=classes,
        channels=channels,
        subsampling=subsampling,
        rngs=rngs,
    )
