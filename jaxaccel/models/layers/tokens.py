"""Sequences (B, L, ...) of which each has its own length: embeddings of tokens, and pooling over what is there.

A mask (B, L) is True where a sequence has something. What stands elsewhere, ids or numbers, never counts.
"""

import jax
import jax.numpy as jnp
from flax import nnx

Mix = tuple[jax.Array, jax.Array, jax.Array]
"""Other tokens (B, L), their mask (B, L), and their weight (B,) in [0, 1]."""


def embed_tokens(
    embed: nnx.Embed, tokens: jax.Array, mask: jax.Array, mix: Mix | None = None
) -> tuple[jax.Array, jax.Array]:
    """Looks up embeddings, and mixes them with those of other tokens (Guo et al. 2019, arXiv:1905.08941).

    Args:
      embed: the table.
      tokens: (B, L) int; where `mask` is False, any number.
      mask: (B, L) bool.
      mix: what is mixed in: embeddings become (1 - weight) * own + weight * other.

    Returns:
      Embeddings (B, L, width), 0 where there is no token; and the mask of both: where a text that has any weight has a
      token.
    """
    x = _look_up(embed, tokens, mask)
    if mix is None:
        return x, mask
    others, other_mask, weight = mix
    own = (1 - weight).astype(x.dtype)[:, None, None] * x
    other = weight.astype(x.dtype)[:, None, None] * _look_up(embed, others, other_mask)
    return own + other, (mask & (weight < 1)[:, None]) | (other_mask & (weight > 0)[:, None])


def _look_up(embed: nnx.Embed, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    # JAX looks up NaN for an id that is not there, and 0 * NaN is no 0.
    return jnp.where(mask[..., None], embed(jnp.where(mask, tokens, 0)), 0)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `x` (B, L, C) over the positions that `mask` (B, L) has: (B, C). 0 where there are none."""
    there = mask[..., None]
    count = jnp.maximum(there.sum(axis=1), 1)
    return jnp.where(there, x, 0).sum(axis=1) / count.astype(x.dtype)


def masked_max(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maximum of `x` (B, L, C) over the positions that `mask` (B, L) has: (B, C). 0 where there are none.

    The first of equal elements has the gradient.
    """
    there = mask[..., None]
    # By index: JAX's gradient of `max` asks which element equals it, which XLA may compute anew and miss.
    first = jax.lax.stop_gradient(jnp.where(there, x, -jnp.inf)).argmax(axis=1, keepdims=True)
    largest = jnp.take_along_axis(x, first, axis=1)[:, 0]
    return jnp.where(mask.any(axis=1)[:, None], largest, 0)
