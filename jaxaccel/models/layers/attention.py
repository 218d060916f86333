"""Scaled dot-product attention, as one operation that a program shows as such, and the layer around it."""

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import truncated_normal
from jaxaccel.models.layers.rotary import rotate


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


class Attention(nnx.Module):
    """Multi-head self-attention.

    ``query``, ``key`` and ``value`` have kernels (width, heads, head_dim), ``out`` has (heads, head_dim,
    width): tensor parallelism splits the axis of heads, and only the sum in ``out`` crosses devices.

    Args:
      width: features of a token, a multiple of `heads`.
      heads: attention heads; with `rotary`, their features are an even number.
      rotary: queries and keys are rotated by their positions (`jaxaccel.models.layers.rotary.rotate`).
      causal: a position sees only itself and those before it.
      rngs: stream ``params``.
    """

    def __init__(
        self, width: int, heads: int, *, rotary: bool = False, causal: bool = False, rngs: nnx.Rngs
    ) -> None:
        split = (heads, width // heads)
        self.query = nnx.LinearGeneral(width, split, kernel_init=truncated_normal, rngs=rngs)
        self.key = nnx.LinearGeneral(width, split, kernel_init=truncated_normal, rngs=rngs)
        self.value = nnx.LinearGeneral(width, split, kernel_init=truncated_normal, rngs=rngs)
        self.out = nnx.LinearGeneral(split, width, axis=(-2, -1), kernel_init=truncated_normal, rngs=rngs)
        self.rotary = rotary
        self.causal = causal

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(B, T, width) -> (B, T, width); positions that `mask` (B, T) leaves out are seen by none."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        pairs = None if mask is None else mask[:, None, None, :]
        return self.out(attend(query, key, value, pairs, causal=self.causal))
