"""Recurrent networks for connectionist temporal classification (Graves et al. 2006, 2013, arXiv:1303.5778).

Layers of LSTMs or GRUs over stacked frames; for each output the logits of all symbols and of the blank. With one
direction alone the network hears a stream.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import head, optional_dropout
from jaxaccel.models.layers.frames import check_subsampling, stack_frames, subsample_mask, zero_padding
from jaxaccel.models.layers.recurrent import Carry, Gru, Lstm

Cell = Literal["lstm", "gru"]
_CELLS = {"lstm": Lstm, "gru": Gru}


class RecurrentCtc(nnx.Module):
    """Layers of LSTMs or GRUs over frames.

    `subsampling` neighboring frames become one by a dense layer with ReLU. Parameters stand at ``project``
    (subsampling * channels, width), ``forward/<i>`` and, in both directions, ``backward/<i>``
    (`jaxaccel.models.layers.recurrent`), and ``head``.

    Args:
      cell: ``lstm`` or ``gru``.
      width: outputs of the dense layer.
      features: outputs of one direction of a layer.
      depth: layers.
      bidirectional: layers in both directions. Without, the network streams (`start`, `step`).
      dropout: probability of dropout before each layer and before the head.
      classes: outputs, the blank among them.
      channels: features of a frame.
      subsampling: frames of an output: 1, 2 or 4.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: a size is below 1, or `cell` or `subsampling` is none of those.
    """

    def __init__(
        self,
        *,
        cell: Cell = "lstm",
        width: int = 128,
        features: int = 128,
        depth: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.1,
        classes: int,
        channels: int,
        subsampling: int = 2,
        rngs: nnx.Rngs,
    ) -> None:
        if min(width, features, depth) < 1:
            raise ValueError(f"RecurrentCtc: {width=}, {features=} and {depth=} must be at least 1")
        if cell not in _CELLS:
            raise ValueError(f"RecurrentCtc: {cell=} must be 'lstm' or 'gru'")
        check_subsampling(subsampling, "RecurrentCtc")
        layer, both = _CELLS[cell], 1 + bidirectional
        inputs = [width, *[both * features] * (depth - 1)]
        self.project = nnx.Linear(subsampling * channels, width, rngs=rngs)
        self.forward = nnx.List([layer(n, features, rngs=rngs) for n in inputs])
        self.backward = (
            nnx.List([layer(n, features, reverse=True, rngs=rngs) for n in inputs]) if bidirectional else None
        )
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(both * features, classes, rngs=rngs)
        self.subsampling = subsampling

    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits (B, ceil(T / subsampling), classes) of `features` (B, T, channels) where `mask` (B, T) is True."""
        x = self._project(zero_padding(features, mask))
        mask = subsample_mask(mask, self.subsampling)
        directions = (self.forward,) if self.backward is None else (self.forward, self.backward)
        for layers in zip(*directions, strict=True):
            x = self.dropout(x)
            x = jnp.concatenate([layer(x, mask)[0] for layer in layers], axis=-1)
        return self.head(self.dropout(x))

    def start(self, batch: int) -> tuple[Carry | jax.Array, ...]:
        """What `step` takes with the first frames of `batch` streams.

        Raises:
          ValueError: the model is bidirectional.
        """
        self._check_streams()
        return tuple(layer.start(batch) for layer in self.forward)

    def step(
        self, features: jax.Array, carry: tuple[Carry | jax.Array, ...]
    ) -> tuple[jax.Array, tuple[Carry | jax.Array, ...]]:
        """Logits (B, t / subsampling, classes) of the next t frames (B, t, channels), and what the step after takes.

        Steps give the logits that one call with all frames gives.

        Raises:
          ValueError: the model is bidirectional, or t is no multiple of the subsampling.
        """
        self._check_streams()
        if features.shape[1] % self.subsampling:
            raise ValueError(
                f"RecurrentCtc: {features.shape[1]} frames are no multiple of subsampling={self.subsampling}"
            )
        x, after = self._project(features), []
        for layer, before in zip(self.forward, carry, strict=True):
            x, last = layer(self.dropout(x), carry=before)
            after.append(last)
        return self.head(self.dropout(x)), tuple(after)

    def _project(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.project(stack_frames(x, self.subsampling)))

    def _check_streams(self) -> None:
        if self.backward is not None:
            raise ValueError(
                "RecurrentCtc: a bidirectional model hears a sound whole; bidirectional=False streams"
            )


def lstm_ctc(
    *,
    width: int = 128,
    features: int = 128,
    depth: int = 2,
    bidirectional: bool = True,
    dropout: float = 0.1,
    classes: int,
    channels: int,
    subsampling: int = 2,
    rngs: nnx.Rngs,
) -> RecurrentCtc:
    """Two layers of LSTMs of 128 in each direction: 128 * subsampling * channels + 257 * classes + 657,536 parameters.

    In one direction 128 * subsampling * channels + 129 * classes + 263,296. Dropout is 0.1.
    """
    return RecurrentCtc(
        cell="lstm",
        width=width,
        features=features,
        depth=depth,
        bidirectional=bidirectional,
        dropout=dropout,
        classes=classes,
        channels=channels,
        subsampling=subsampling,
        rngs=rngs,
    )


def gru_ctc(
    *,
    width: int = 128,
    features: int = 128,
    depth: int = 2,
    bidirectional: bool = True,
    dropout: float = 0.1,
    classes: int,
    channels: int,
    subsampling: int = 2,
    rngs: nnx.Rngs,
) -> RecurrentCtc:
    """Two layers of GRUs of 128 in each direction: 128 * subsampling * channels + 257 * classes + 494,720 parameters.

    In one direction 128 * subsampling * channels + 129 * classes + 198,272. Dropout is 0.1.
    """
    return RecurrentCtc(
        cell="gru",
        width=width,
        features=features,
        depth=depth,
        bidirectional=bidirectional,
        dropout=dropout,
        classes=classes,
        channels=channels,
        subsampling=subsampling,
        rngs=rngs,
    )
