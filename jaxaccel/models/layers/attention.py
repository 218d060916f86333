"""Scaled dot-product attention, as one operation that a program shows as such."""

import jax


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
