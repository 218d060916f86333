"""Connectionist temporal classification (Graves et al. 2006), safe where labels do not fit their sounds."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

BLANK = 0
"""The class that stands for no symbol."""
MAX_LOGIT = 1e4
"""Logits are clipped to this, so that a class that is ruled out costs much and not infinitely much."""


class CtcLoss(NamedTuple):
    """The losses of a batch."""

    values: jax.Array
    """(B,) float32, in nats, at least 0; 0 where there is no alignment."""
    feasible: jax.Array
    """(B,) bool: whether the labels fit into the outputs."""


def count_least_outputs(labels: Sequence[int]) -> int:
    """How many outputs an alignment needs at least: one a label, and a blank between equal neighbors."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def compute_ctc(logits: jax.Array, outputs: jax.Array, labels: jax.Array, counts: jax.Array) -> CtcLoss:
    """Computes -log p(labels | logits), summed over all alignments (Graves et al. 2006, ICML).

    Labels that do not fit, because there are more of them (and of blanks between equal ones) than outputs, or more than
    the array holds, or a negative number of them, have no loss and no gradient: `optax.ctc_loss` alone would give 1e5
    and a gradient that drowns all others. Logits that are NaN give NaN: a model that diverges is to be seen.

    Args:
      logits: (B, T, classes) of any float; class 0 is the blank.
      outputs: (B,) int, how many of T count.
      labels: (B, L) int, classes from 1 on; what lies behind `counts` is ignored.
      counts: (B,) int, how many labels there are; negative where they are unknown.
    """
    places = jnp.arange(labels.shape[1])
    there = places < counts[:, None]
    again = (labels[:, 1:] == labels[:, :-1]) & there[:, 1:]
    fits = outputs >= counts + again.sum(1)
    feasible = fits & (counts >= 0) & (counts <= labels.shape[1]) & (outputs > 0)
    kept = there & feasible[:, None]
    # What has no alignment is computed with no labels at all, which always has one.
    values = optax.ctc_loss(
        jnp.clip(logits.astype(jnp.float32), -MAX_LOGIT, MAX_LOGIT),
        (jnp.arange(logits.shape[1]) >= jnp.maximum(outputs, 1)[:, None]).astype(jnp.float32),
        jnp.where(kept, labels, BLANK + 1),
        (~kept).astype(jnp.float32),
        blank_id=BLANK,
    )
    return CtcLoss(jnp.where(feasible, jnp.maximum(values, 0.0), 0.0), feasible)
