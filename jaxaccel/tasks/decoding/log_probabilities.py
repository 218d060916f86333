"""Logarithms of the probabilities of what comes next."""

import jax
import jax.numpy as jnp

NEVER = -1e30
"""The logarithm of what cannot be; finite, so that differences of two of them are no NaN."""


def find_log_probabilities(logits: jax.Array) -> jax.Array:
    """Normalizes `logits` (..., classes) of any float, in float32.

    They are NaN throughout where a logit is NaN or +inf, or all of them are -inf.
    """
    return jax.nn.log_softmax(logits.astype(jnp.float32))
