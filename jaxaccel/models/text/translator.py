"""The Transformer that translates (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), pre-norm.

One table serves the source, the target and the logits (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import optional_dropout
from jaxaccel.models.layers.decoder import Cache, DecoderBlock, look_up, sinusoids
from jaxaccel.models.layers.tokens import embed_tokens
from jaxaccel.models.layers.transformer import Block

xavier = nnx.initializers.xavier_uniform()


class Translator(nnx.Module):
    """An encoder and a decoder.

    A sentence has the same logits whatever it is filled up with, and whatever else is in its batch. `step` gives the
    logits of one position after the other, equal to those of the call.

    Parameters stand at ``embed/embedding`` (vocabulary, width), ``encoder/<i>/{norm1,norm2}``,
    ``encoder/<i>/attention/{query,key,value,out}``, ``encoder/<i>/mlp/{up,down}``, ``encoder_norm``, and, in
    ``decoder/<i>``, ``{norm1,norm2,norm3}``, ``{attention,cross_attention}/{query,key,value,out}`` and
    ``mlp/{up,down}``, and ``decoder_norm``. The table starts normal with standard deviation ``width ** -0.5``, kernels
    Xavier uniform. Positions are sines and cosines; the MLP's activation is ReLU.

    Args:
      width: features of a token, an even multiple of `heads`.
      depth: blocks of the encoder and of the decoder.
      heads: attention heads.
      hidden: features between the layers of the MLP.
      dropout: probability of dropout of the embeddings and of what each part of a block adds, and nowhere else.
      vocabulary: number of token ids, of both languages together.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: arguments do not fit together.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        vocabulary: int,
        rngs: nnx.Rngs,
    ) -> None:
        if heads < 1 or width % heads or width % 2:
            raise ValueError(f"Translator: width={width} must be even and a multiple of heads={heads}")
        if min(depth, hidden) < 1:
            raise ValueError(f"Translator: {depth=} and {hidden=} must be at least 1")
        table = nnx.initializers.normal(width**-0.5)
        self.embed = nnx.Embed(vocabulary, width, embedding_init=table, rngs=rngs)
        self.encoder = nnx.List(
            [
                Block(
                    width, heads, hidden, dropout=dropout, inner_dropout=0.0, activation=nnx.relu, init=xavier,
                    rngs=rngs,
                )
                for _ in range(depth)
            ]
        )  # fmt: skip
        self.encoder_norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.decoder = nnx.List(
            [
                DecoderBlock(
                    width, heads, hidden, dropout=dropout, cross=True, activation=nnx.relu, init=xavier, rngs=rngs
                )
                for _ in range(depth)
            ]
        )  # fmt: skip
        self.decoder_norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, source: jax.Array, source_mask: jax.Array, previous: jax.Array) -> jax.Array:
        """Logits (B, T, vocabulary) of each target token, given those before it.

        Args:
          source: (B, S) int.
          source_mask: (B, S) bool, True where `source` has tokens.
          previous: (B, T) int, the target's tokens, each one position later: the first is the begin.
        """
        memory = self.encode(source, source_mask)
        x = self.dropout(self._place(look_up(self.embed, previous), jnp.arange(previous.shape[1])))
        for block in self.decoder:
            x = block(x, memory, source_mask)
        return self.embed.attend(self.decoder_norm(x)).astype(jnp.float32)

    def encode(self, source: jax.Array, source_mask: jax.Array) -> jax.Array:
        """What the decoder reads, (B, S, width), of `source` (B, S) where `source_mask` (B, S) is True."""
        x, _ = embed_tokens(self.embed, source, source_mask)
        x = self.dropout(self._place(x, jnp.arange(source.shape[1])))
        for block in self.encoder:
            x = block(x, source_mask)
        return self.encoder_norm(x)

    def start(self, memory: jax.Array, source_mask: jax.Array, length: int) -> Cache:
        """What `step` takes first, for `length` tokens at most."""
        batch = source_mask.shape[0]
        return Cache(
            jnp.zeros(batch, jnp.int32),
            tuple(block.attention.start(batch, length) for block in self.decoder),
            tuple(block.start(memory) for block in self.decoder),
            source_mask,
        )

    def step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits (B, vocabulary) of what follows `token` (B,), and what the step after takes."""
        x = self._place(look_up(self.embed, token), cache.position)
        before = []
        for block, own, memory in zip(self.decoder, cache.before, cache.memory, strict=True):
            x, now = block.step(x, own, cache.position, memory, cache.memory_mask)
            before.append(now)
        logits = self.embed.attend(self.decoder_norm(x)).astype(jnp.float32)
        return logits, cache._replace(position=cache.position + 1, before=tuple(before))

    def _place(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Embeddings (..., width) in the scale of the positions, which are added."""
        width = x.shape[-1]
        return x * math.sqrt(width) + sinusoids(positions, width).astype(x.dtype)


def translator_tiny(*, vocabulary: int, rngs: nnx.Rngs, **options: Any) -> Translator:
    """4 and 4 blocks of width 128 with 4 heads and MLPs of 256: 128 * vocabulary + 1,325,568 parameters.

    As Transformer-Tiny of Wu et al. 2021 (https://arxiv.org/abs/2105.14462), for small sets. Dropout is 0.3.
    """
    sizes = {"width": 128, "depth": 4, "heads": 4, "hidden": 256, "dropout": 0.3}
    return Translator(vocabulary=vocabulary, rngs=rngs, **(sizes | options))


def translator_base(*, vocabulary: int, rngs: nnx.Rngs, **options: Any) -> Translator:
    """6 and 6 blocks of width 512 with 8 heads and MLPs of 2,048: 512 * vocabulary + 44,140,544 parameters.

    The base model of Vaswani et al. 2017, but pre-norm. Dropout is 0.1.
    """
    sizes = {"width": 512, "depth": 6, "heads": 8, "hidden": 2048, "dropout": 0.1}
    return Translator(vocabulary=vocabulary, rngs=rngs, **(sizes | options))
