"""Transformers that write token by token: blocks of a decoder, positions, and caches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from jaxaccel.models.layers.attention import Attention, CrossAttention, KeyValue
from jaxaccel.models.layers.blocks import Activation, optional_dropout, truncated_normal
from jaxaccel.models.layers.mlp import Mlp


class Cache(NamedTuple):
    """What a step hands on to the next; every leaf has the batch as its first axis."""

    position: jax.Array
    """(B,) int32: that of the next token."""
    before: tuple[KeyValue, ...]
    """Keys and values of the tokens before, (B, N, length, H), of each block."""
    memory: tuple[KeyValue, ...] = ()
    """Keys and values of the other sequence, (B, N, S, H), of each block."""
    memory_mask: jax.Array | None = None
    """(B, S) bool: where the other sequence has tokens."""


class DecoderBlock(nnx.Module):
    """A pre-norm block: causal attention, attention to another sequence, then the MLP, each added to its input.

    Args:
      width: features of a token, a multiple of `heads`.
      heads: attention heads.
      hidden: features between the layers of the MLP.
      dropout: probability of dropout of what each of the three adds.
      cross: whether there is another sequence; without one the second part is missing.
      rotary: queries and keys of the first attention are rotated by their positions.
      activation: between the layers of the MLP; GELU where it is left out.
      init: what kernels start from.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        dropout: float,
        cross: bool,
        rotary: bool = False,
        activation: Activation | None = None,
        init: Initializer = truncated_normal,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attention = Attention(width, heads, rotary=rotary, causal=True, init=init, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs) if cross else None
        self.cross_attention = CrossAttention(width, heads, init=init, rngs=rngs) if cross else None
        self.norm3 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = Mlp(width, hidden, activation=activation, init=init, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """(B, T, width) -> (B, T, width), with the other sequence (B, S, width) and its mask (B, S)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        if self.cross_attention is not None:
            assert self.norm2 is not None and memory is not None and mask is not None
            seen = self.cross_attention.read(memory)
            x = x + self.dropout(self.cross_attention(self.norm2(x), seen, mask))
        return x + self.dropout(self.mlp(self.norm3(x)))

    def start(self, memory: jax.Array) -> KeyValue:
        """What `step` takes of the other sequence (B, S, width)."""
        assert self.cross_attention is not None
        return self.cross_attention.start(memory)

    def step(
        self,
        x: jax.Array,
        before: KeyValue,
        position: jax.Array,
        memory: KeyValue | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """As the call, of one position: `x` (B, width).

        `before` is as `Attention.step` has it, `memory` as `CrossAttention.step` has.
        """
        new, before = self.attention.step(self.norm1(x), before, position)
        x = x + new
        if self.cross_attention is not None:
            assert self.norm2 is not None and memory is not None and mask is not None
            x = x + self.cross_attention.step(self.norm2(x), memory, mask)
        return x + self.mlp(self.norm3(x)), before


def look_up(embed: nnx.Embed, tokens: jax.Array) -> jax.Array:
    """Embeddings (..., width) of `tokens`; an id that is not there is the nearest one, where JAX would give NaN.

    Positions behind the end of a sequence may hold anything. No position before sees them, but 0 * NaN is no 0.
    """
    return embed(jnp.clip(tokens, 0, embed.embedding.shape[0] - 1))


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Sines and cosines (..., width) of `positions` (...), of wavelengths from 2 pi to 10,000 * 2 pi.

    Of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), 3.5; `width` is even, the sines come first.
    """
    half = width // 2
    speeds = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * speeds
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
