"""Scaled dot-product attention, as one operation that a program shows as such, and the layers around it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from jaxaccel.models.layers.blocks import truncated_normal
from jaxaccel.models.layers.rotary import rotate

HIDDEN = -1e30
"""The score of a position that is not seen; finite, so that a row which sees nothing is no NaN."""


class KeyValue(NamedTuple):
    """What S positions show of themselves to those that look, N heads of H features: (B, S, N, H), or (B, N, S, H)."""

    key: jax.Array
    value: jax.Array


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, *, causal: bool = False
) -> jax.Array:
    """Computes scaled dot-product attention, as `jax.nn.dot_product_attention` does.

    `jaxaccel.bfloat16` and `float16` give it to cuDNN as a whole where that has a kernel for it.

    Args:
      query: (B, T, N, H): N heads of H features.
      key: (B, S, N, H).
      value: (B, S, N, H).
      mask: booleans that broadcast to (B, N, T, S): which pairs count.
      causal: whether a position sees only itself and those before it.

    Returns:
      (B, T, N, H), in the dtype of `query`.
    """
    return (_causal if causal else _whole)(query, key, value, mask)


def _jaxaccel_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def _jaxaccel_causal_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True)


# Their names are what transformations know a call by (`jaxaccel.transforms.lowering.attention`).
_whole, _causal = jax.jit(_jaxaccel_attention), jax.jit(_jaxaccel_causal_attention)


def attend_once(query: jax.Array, seen: KeyValue, mask: jax.Array) -> jax.Array:
    """Computes attention of a single position.

    Heads come first in what it sees, so that each product reads rows that lie together: with four heads of 32, 40
    positions and 160 rows a step on two CPU cores took 12 ms, and 70 ms by `attend`.

    Args:
      query: (B, N, H).
      seen: (B, N, S, H).
      mask: (B, S) bool, at least one True in each row.

    Returns:
      (B, N, H).
    """
    scores = (query[:, :, None] @ seen.key.swapaxes(-1, -2)).astype(jnp.float32) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, HIDDEN), axis=-1)
    return (weights.astype(seen.value.dtype) @ seen.value)[:, :, 0]


def put_heads_first(x: jax.Array) -> jax.Array:
    """(B, S, N, H) -> (B, N, S, H)."""
    return x.swapaxes(1, 2)


class Attention(nnx.Module):
    """Multi-head self-attention.

    ``query``, ``key`` and ``value`` have kernels (width, heads, head_dim), ``out`` has (heads, head_dim,
    width): tensor parallelism splits the axis of heads, and only the sum in ``out`` crosses devices.

    Args:
      width: features of a token, a multiple of `heads`.
      heads: attention heads; with `rotary`, their features are an even number.
      rotary: queries and keys are rotated by their positions (`jaxaccel.models.layers.rotary.rotate`).
      causal: a position sees only itself and those before it.
      init: what kernels start from.
      rngs: stream ``params``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rotary: bool = False,
        causal: bool = False,
        init: Initializer = truncated_normal,
        rngs: nnx.Rngs,
    ) -> None:
        split = (heads, width // heads)
        self.query = nnx.LinearGeneral(width, split, kernel_init=init, rngs=rngs)
        self.key = nnx.LinearGeneral(width, split, kernel_init=init, rngs=rngs)
        self.value = nnx.LinearGeneral(width, split, kernel_init=init, rngs=rngs)
        self.out = nnx.LinearGeneral(split, width, axis=(-2, -1), kernel_init=init, rngs=rngs)
        self.rotary = rotary
        self.causal = causal

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(B, T, width) -> (B, T, width); positions that `mask` (B, T) leaves out are seen by none."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        pairs = None if mask is None else mask[:, None, None, :]
        return self.out(attend(query, key, value, pairs, causal=self.causal))

    def start(self, batch: int, length: int) -> KeyValue:
        """The cache of `step` before the first of `length` positions, (B, N, length, H): zeros."""
        heads, features = self.key.kernel.shape[1:]
        zeros = jnp.zeros((batch, heads, length, features), self.key.kernel.dtype)
        return KeyValue(zeros, zeros)

    def step(self, x: jax.Array, cache: KeyValue, position: jax.Array) -> tuple[jax.Array, KeyValue]:
        """The output (B, width) of the next position, which sees those in the cache, and the cache with it.

        Args:
          x: (B, width).
          cache: as of `start`, with all positions before.
          position: (B,) int32.
        """
        query, key, value = self.query(x)[:, None], self.key(x)[:, None], self.value(x)[:, None]
        if self.rotary:
            query, key = rotate(query, position[:, None]), rotate(key, position[:, None])
        places = jnp.arange(cache.key.shape[2])
        here = (places == position[:, None])[:, None, :, None]
        # A select and no scatter, which XLA's CPU backend does row by row.
        cache = KeyValue(
            *(jnp.where(here, put_heads_first(x), y) for x, y in zip((key, value), cache, strict=True))
        )
        return self.out(attend_once(query[:, 0], cache, places <= position[:, None])), cache


class CrossAttention(nnx.Module):
    """Multi-head attention to another sequence. Its parameters are those of `Attention`.

    Args:
      width: features of a token, a multiple of `heads`.
      heads: attention heads.
      init: what kernels start from.
      rngs: stream ``params``.
    """

    def __init__(
        self, width: int, heads: int, *, init: Initializer = truncated_normal, rngs: nnx.Rngs
    ) -> None:
        split = (heads, width // heads)
        self.query = nnx.LinearGeneral(width, split, kernel_init=init, rngs=rngs)
        self.key = nnx.LinearGeneral(width, split, kernel_init=init, rngs=rngs)
        self.value = nnx.LinearGeneral(width, split, kernel_init=init, rngs=rngs)
        self.out = nnx.LinearGeneral(split, width, axis=(-2, -1), kernel_init=init, rngs=rngs)

    def read(self, memory: jax.Array) -> KeyValue:
        """Keys and values of the other sequence (B, S, width), which are the same for all positions that look."""
        return KeyValue(self.key(memory), self.value(memory))

    def __call__(self, x: jax.Array, memory: KeyValue, mask: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width), by what was `read` where `mask` (B, S) is True."""
        return self.out(attend(self.query(x), *memory, mask[:, None, None, :]))

    def start(self, memory: jax.Array) -> KeyValue:
        """What `step` takes of the other sequence (B, S, width): (B, N, S, H)."""
        return KeyValue(*map(put_heads_first, self.read(memory)))

    def step(self, x: jax.Array, memory: KeyValue, mask: jax.Array) -> jax.Array:
        """(B, width) -> (B, width), by what `start` gave where `mask` (B, S) is True."""
        return self.out(attend_once(self.query(x), memory, mask))
