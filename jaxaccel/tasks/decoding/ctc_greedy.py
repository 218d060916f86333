"""The best path through the outputs of a model that was trained by CTC."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FILL = -1
"""What stands in an array of symbols behind the last one."""


class Decoded(NamedTuple):
    """Sequences of symbols, the best first where there are several."""

    symbols: jax.Array
    """(B, L) or (B, K, L) int32, filled up with -1."""
    scores: jax.Array
    """(B,) or (B, K) float32: logarithms of probabilities."""


def collapse_best_path(logits: jax.Array, outputs: jax.Array, blank: int = 0) -> Decoded:
    """Takes the best class of each output, joins equal neighbors and leaves out blanks.

    The score is that of the path, which is at most that of the symbols over all their alignments.

    Args:
      logits: (B, T, classes) of any float.
      outputs: (B,) int, how many of T count.
      blank: the class of no symbol.
    """
    probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    there = jnp.arange(logits.shape[1]) < outputs[:, None]
    best = jnp.where(there, probabilities.argmax(-1), blank).astype(jnp.int32)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    begins = (best != blank) & (best != before)
    place = jnp.where(begins, begins.cumsum(1) - 1, best.shape[1])
    rows = jnp.arange(len(best))[:, None]
    symbols = jnp.full_like(best, FILL).at[rows, place].set(best, mode="drop")
    return Decoded(symbols, jnp.where(there, probabilities.max(-1), 0).sum(1))
