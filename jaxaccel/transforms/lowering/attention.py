"""Attention as one operation, which transformations know by the name of a jitted function.

cuDNN computes it on GPUs without writing the weights of all pairs to memory.

XLA has no such form of its own: it computes two products and a softmax between them. cuDNN's kernel is that of
FlashAttention (Dao 2023, arXiv:2307.08691) for bfloat16 and float16. Nothing of it has been timed yet; what is known is
that the (T, S) weights of each head are gone from the program (`python -m benchmarks compiled`).
"""

import jax
import jax.numpy as jnp

from jaxaccel.core.sites import CALL

OLDEST_WITH_KERNEL = (8, 0)
"""Compute capability of the first GPUs for which cuDNN has it."""
CALLS = {f"{CALL}_jaxaccel_attention": False, f"{CALL}_jaxaccel_causal_attention": True}
"""By the name of the rule for a call of `jaxaccel.models.layers.attention.attend`: whether it is causal."""


def attend_by_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, *, causal: bool = False
) -> jax.Array:
    """Computes attention by cuDNN, arguments as of `jaxaccel.models.layers.attention.attend`.

    Sequences of odd length are filled up, because the kernel has no gradient for them.

    Raises:
      RuntimeError: cuDNN is not installed.
      NotImplementedError: it has no kernel for these shapes.
      ValueError: likewise.
    """
    (batch, long), short = query.shape[:2], key.shape[1]
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], long, short))
    if long % 2 == 0 and short % 2 == 0:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation="cudnn"
        )
    query, key, value = (
        jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (query, key, value)
    )
    if mask is not None:
        mask = jnp.pad(mask, [(0, 0), (0, 0), (0, long % 2), (0, short % 2)])
    query_lengths, key_lengths = (jnp.full(batch, n, jnp.int32) for n in (long, short))
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths, implementation="cudnn",
    )  # fmt: skip
    return out[:, :long]


def why_not_by_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, causal: bool
) -> str:
    """Says why cuDNN cannot compute this attention and its gradient; nothing where it can."""

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attend_by_cudnn(query, key, value, mask, causal=causal).astype(jnp.float32).sum()

    try:
        jax.eval_shape(jax.grad(total, argnums=(0, 1, 2)), query, key, value)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return f"cuDNN has no kernel for this attention: {str(error).splitlines()[0].rstrip('.')}"
    return ""
