"""Gated recurrent units that translate, with attention (Luong et al. 2015, https://arxiv.org/abs/1508.04025).

The attention is their global one with the "general" score. Its outputs are not fed back, so that only the recurrence
itself is a loop in training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.attention import HIDDEN
from jaxaccel.models.layers.blocks import optional_dropout
from jaxaccel.models.layers.decoder import look_up
from jaxaccel.models.layers.recurrent import Gru
from jaxaccel.models.layers.tokens import embed_tokens


class Memory(NamedTuple):
    """What the encoder makes of the source."""

    outputs: jax.Array
    """(B, S, 2 * features)."""
    last: jax.Array
    """(B, 2 * features): of the last layer, where each direction ends."""


class RecurrentCache(NamedTuple):
    """What a step hands on to the next; every leaf has the batch as its first axis."""

    position: jax.Array
    """(B,) int32: that of the next token."""
    carries: tuple[jax.Array, ...]
    """(B, features) of each layer of the decoder."""
    keys: jax.Array
    """(B, S, features): what outputs of the decoder are compared with."""
    outputs: jax.Array
    """(B, S, 2 * features): those of the encoder."""
    mask: jax.Array
    """(B, S) bool."""


class AttentionGru(nnx.Module):
    """An encoder of GRUs in both directions, and a decoder that attends to it.

    A sentence has the same logits whatever it is filled up with, and whatever else is in its batch. `step` gives the
    logits of one position after the other, equal to those of the call. One table serves the source, the target and the
    logits.

    Parameters stand at ``embed/embedding`` (vocabulary, width), ``forward/<i>``, ``backward/<i>`` and ``decoder/<i>``
    (`jaxaccel.models.layers.recurrent.Gru`), ``begin`` (2 * features, depth * features), ``key`` (2 * features,
    features), ``combine`` (3 * features, width) and ``bias`` (vocabulary,).

    Args:
      width: features of an embedding.
      features: outputs of one direction of the encoder, and of the decoder.
      depth: layers of both.
      dropout: probability of dropout of what goes into each layer, and of what the logits are computed from.
      vocabulary: number of token ids, of both languages together.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: a size is below 1.
    """

    def __init__(
        self,
        *,
        width: int,
        features: int,
        depth: int,
        dropout: float = 0.3,
        vocabulary: int,
        rngs: nnx.Rngs,
    ) -> None:
        if min(width, features, depth) < 1:
            raise ValueError(f"AttentionGru: {width=}, {features=} and {depth=} must be at least 1")
        table = nnx.initializers.normal(width**-0.5)
        self.embed = nnx.Embed(vocabulary, width, embedding_init=table, rngs=rngs)
        inputs = [width, *[2 * features] * (depth - 1)]
        self.forward = nnx.List([Gru(n, features, rngs=rngs) for n in inputs])
        self.backward = nnx.List([Gru(n, features, reverse=True, rngs=rngs) for n in inputs])
        self.begin = nnx.Linear(2 * features, depth * features, rngs=rngs)
        inputs = [width, *[features] * (depth - 1)]
        self.decoder = nnx.List([Gru(n, features, rngs=rngs) for n in inputs])
        self.key = nnx.Linear(2 * features, features, use_bias=False, rngs=rngs)
        self.combine = nnx.Linear(3 * features, width, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(vocabulary))
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, source: jax.Array, source_mask: jax.Array, previous: jax.Array) -> jax.Array:
        """Logits (B, T, vocabulary) of each target token, given those before it.

        Args:
          source: (B, S) int.
          source_mask: (B, S) bool, True where `source` has tokens.
          previous: (B, T) int, the target's tokens, each one position later: the first is the begin.
        """
        memory = self.encode(source, source_mask)
        x = self._look_up(previous)
        for layer, carry in zip(self.decoder, self._begin(memory), strict=True):
            x, _ = layer(self.dropout(x), carry=carry)
        return self._finish(x, self.key(memory.outputs), memory.outputs, source_mask)

    def encode(self, source: jax.Array, source_mask: jax.Array) -> Memory:
        """What the decoder attends to of `source` (B, S) where `source_mask` (B, S) is True."""
        x, _ = embed_tokens(self.embed, source, source_mask)
        x = x * x.shape[-1] ** 0.5
        last = x[:, 0]
        for forward, backward in zip(self.forward, self.backward, strict=True):
            x = self.dropout(x)
            (one, end), (other, start) = forward(x, source_mask), backward(x, source_mask)
            x, last = jnp.concatenate([one, other], axis=-1), jnp.concatenate([end, start], axis=-1)
        return Memory(x, last)

    def start(self, memory: Memory, source_mask: jax.Array, length: int) -> RecurrentCache:
        """What `step` takes first; it needs the same memory for any `length`."""
        position = jnp.zeros(source_mask.shape[0], jnp.int32)
        keys = self.key(memory.outputs)
        return RecurrentCache(position, self._begin(memory), keys, memory.outputs, source_mask)

    def step(self, token: jax.Array, cache: RecurrentCache) -> tuple[jax.Array, RecurrentCache]:
        """Logits (B, vocabulary) of what follows `token` (B,), and what the step after takes."""
        x, carries = self._look_up(token), []
        for layer, carry in zip(self.decoder, cache.carries, strict=True):
            x = layer.step(x, carry)
            carries.append(x)
        logits = self._finish(x[:, None], cache.keys, cache.outputs, cache.mask)[:, 0]
        return logits, cache._replace(position=cache.position + 1, carries=tuple(carries))

    def _look_up(self, tokens: jax.Array) -> jax.Array:
        x = look_up(self.embed, tokens)
        return x * x.shape[-1] ** 0.5

    def _begin(self, memory: Memory) -> tuple[jax.Array, ...]:
        """The carries (B, features) that the decoder begins with."""
        return tuple(jnp.split(jnp.tanh(self.begin(memory.last)), len(self.decoder), axis=-1))

    def _finish(self, x: jax.Array, keys: jax.Array, outputs: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits (B, T, vocabulary) of the decoder's outputs (B, T, features)."""
        scores = (x @ keys.swapaxes(1, 2)).astype(jnp.float32) * x.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, HIDDEN), axis=-1)
        context = weights.astype(outputs.dtype) @ outputs
        found = jnp.tanh(self.combine(self.dropout(jnp.concatenate([x, context], axis=-1))))
        return self.embed.attend(self.dropout(found)).astype(jnp.float32) + self.bias[...]


def attention_gru(*, vocabulary: int, rngs: nnx.Rngs, **options: Any) -> AttentionGru:
    """Embeddings of 256 and one layer of GRUs of 256 in each direction: 257 * vocabulary + 1,643,520 parameters.

    Dropout is 0.3.
    """
    sizes = {"width": 256, "features": 256, "depth": 1}
    return AttentionGru(vocabulary=vocabulary, rngs=rngs, **(sizes | options))
