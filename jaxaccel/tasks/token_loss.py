"""The loss of tokens that are predicted one after the other: cross-entropy, smoothed without one-hot labels."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.tasks.metrics import Mean

MAX_NATS = 700.0
"""A loss whose exponential a float64 still holds."""


class TokenLoss(NamedTuple):
    """Sums over the tokens that count."""

    smoothed: Mean
    """What training minimizes, in nats a token."""
    loss: Mean
    """-log of the probability of the right token, in nats."""
    accuracy: Mean
    """Whether the most probable token is the right one."""


def measure_tokens(
    logits: jax.Array, target: jax.Array, weights: jax.Array, smoothing: float = 0.0
) -> TokenLoss:
    """Measures logits against the right tokens, in float32.

    With smoothing e the loss of a token y is logsumexp(l) - (1 - e) l[y] - e mean(l): cross-entropy with a target that
    spreads e evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567), without an array of such targets.

    Args:
      logits: (B, T, vocabulary) of any float.
      target: (B, T) int32.
      weights: (B, T), 0 where there is padding.
      smoothing: e.
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, -1)
    right = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
    loss = total - right
    smoothed = loss + smoothing * (right - logits.mean(-1)) if smoothing else loss
    hits = find_hits(logits, right, target)
    return TokenLoss(*(Mean.of(x, weights) for x in (smoothed, loss, hits)))


def find_hits(logits: jax.Array, right: jax.Array, target: jax.Array) -> jax.Array:
    """(B, T) bool: whether the most probable token, of equal ones the first, is the right one.

    It is ``logits.argmax(-1) == target``, asked as whether another token beats the right one. XLA's CPU backend
    vectorizes a maximum and no argmax, which cost a quarter of the whole loss over 5,000 tokens.

    Args:
      logits: (B, T, vocabulary) float32, none of them NaN.
      right: (B, T), those of the right tokens.
      target: (B, T) int32.
    """
    logits, right = jax.lax.stop_gradient((logits, right[..., None]))
    places, here = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2), target[..., None]
    beaten = jnp.where(places < here, logits >= right, (places > here) & (logits > right))
    return beaten.astype(jnp.float32).max(-1) == 0


def find_perplexity(scores: Mapping[str, float]) -> float:
    """exp of the loss in nats a token; infinite where no float holds it, and NaN where the loss is."""
    return math.inf if scores["loss"] >= MAX_NATS else math.exp(scores["loss"])


def shift_tokens(target: jax.Array, begin: int) -> jax.Array:
    """(B, T): what stands before each token of `target`, which is `begin` before the first."""
    return jnp.pad(target, ((0, 0), (1, 0)), constant_values=begin)[:, :-1]
