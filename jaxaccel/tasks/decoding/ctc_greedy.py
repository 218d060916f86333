"""The best path through the outputs of a model that was trained by CTC."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.tasks.decoding.log_probabilities import find_log_probabilities

FILL = -1
"""What stands in an array of symbols behind the last one."""


class Symbols(NamedTuple):
    """Sequences of symbols, the best first where there are several."""

    symbols: jax.Array
    """(B, L) or (B, K, L) int32, filled up with -1."""
    scores: jax.Array
    """(B,) or (B, K) float32: logarithms of probabilities."""


class BestPath(NamedTuple):
    """The symbols on the best path, and where they are."""

    symbols: jax.Array
    """(B, L) int32, filled up with -1."""
    starts: jax.Array
    """(B, L) int32, the first output of each symbol; -1 where there is none."""
    ends: jax.Array
    """(B, L) int32, the output behind its last one."""
    scores: jax.Array
    """(B,) float32: log probability of the path."""


def collapse_best_path(logits: jax.Array, outputs: jax.Array, blank: int = 0) -> Symbols:
    """Takes the best class of each output, joins equal neighbors and leaves out blanks.

    The score is that of the path, which is at most that of the symbols over all their alignments.

    Args:
      logits: (B, T, classes) of any float.
      outputs: (B,) int, how many of T count.
      blank: the class of no symbol.
    """
    path = follow_best_path(logits, outputs, blank)
    return Symbols(path.symbols, path.scores)


def follow_best_path(logits: jax.Array, outputs: jax.Array, blank: int = 0) -> BestPath:
    """Does the same as `collapse_best_path`, and says which outputs each symbol joins.

    It needs memory that grows with the outputs, where an alignment of all symbols to them needs that of their square.

    Args:
      logits: (B, T, classes) of any float.
      outputs: (B,) int, how many of T count.
      blank: the class of no symbol.
    """
    probabilities = find_log_probabilities(logits)
    length = logits.shape[1]
    there = jnp.arange(length) < outputs[:, None]
    best = jnp.where(there, probabilities.argmax(-1), blank).astype(jnp.int32)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    after = jnp.pad(best[:, 1:], ((0, 0), (0, 1)), constant_values=blank)
    begins = (best != blank) & (best != before)
    ends = (best != blank) & (best != after)
    # The k-th symbol begins at the k-th beginning and ends at the k-th end.
    rows, number = jnp.arange(best.shape[0])[:, None], begins.cumsum(1) - 1
    first, last = jnp.where(begins, number, length), jnp.where(ends, number, length)
    none, at = jnp.full_like(best, FILL), jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), best.shape)
    return BestPath(
        none.at[rows, first].set(best, mode="drop"),
        none.at[rows, first].set(at, mode="drop"),
        none.at[rows, last].set(at + 1, mode="drop"),
        jnp.where(there, probabilities.max(-1), 0).sum(1),
    )
