"""An n-gram model of symbols, which a search adds to what it heard: counted on the host, looked up on the device."""

import collections
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.errors import UserError, option

EDGE = 0
"""The number that stands before the first symbol of a text, and behind its last one."""
MAX_ENTRIES = 2**23
"""Probabilities in the table of a model: 32 MiB, which are a constant of the program."""

Ngrams = tuple[tuple[int, ...], ...]
"""Rows (symbol 1, ..., symbol n, how often they follow each other)."""


class NgramScores(NamedTuple):
    """What a search adds to the logarithm of a text's probability."""

    table: jax.Array | np.ndarray
    """(classes ** (n - 1), classes) float32: log probability of each symbol behind each n - 1; `EDGE` ends a text."""
    weight: float
    """Factor of the log probability."""
    bonus: float
    """Added for each symbol."""


def count_ngrams(texts: Iterable[Sequence[int]], order: int) -> Ngrams:
    """Counts all runs of `order` symbols of `texts`, with `order` - 1 times `EDGE` before each text and one behind."""
    counts: collections.Counter[tuple[int, ...]] = collections.Counter()
    for text in texts:
        whole = (EDGE,) * (order - 1) + tuple(text) + (EDGE,)
        counts.update(whole[i : i + order] for i in range(len(whole) - order + 1))
    return tuple((*symbols, count) for symbols, count in sorted(counts.items()))


@functools.lru_cache(maxsize=4)
def estimate_ngrams(ngrams: Ngrams, classes: int) -> np.ndarray:
    """Estimates the probability of each symbol behind each context, smoothed as Witten & Bell do.

    A context with T different symbols behind it leaves T / (count + T) of the probability to the context that is one
    symbol shorter, and the shortest one to equal probabilities (Witten & Bell 1991, https://doi.org/10.1109/18.87000;
    interpolated as in Chen & Goodman 1998). So nothing is impossible.

    Args:
      ngrams: of `count_ngrams`.
      classes: number of symbols, `EDGE` included.

    Returns:
      (classes ** (n - 1), classes) float32 of natural logarithms; the last symbol of a context is its lowest digit.

    Raises:
      UserError: that many are too many for a table.
    """
    order = len(ngrams[0]) - 1
    if classes**order > MAX_ENTRIES:
        raise UserError(
            f"an n-gram model of {order} of {classes} symbols has {classes**order:,} probabilities, more than "
            f"{MAX_ENTRIES:,}: lower {option('task.ngram')}"
        )
    rows = np.array(ngrams)
    counts = np.zeros((classes,) * order)
    counts[tuple(rows[:, :-1].T)] = rows[:, -1]
    found = np.full((), 1 / classes)
    for length in range(1, order + 1):
        of_length = counts.sum(axis=tuple(range(order - length)))
        total = of_length.sum(-1, keepdims=True)
        kinds = np.maximum((of_length > 0).sum(-1, keepdims=True), total == 0)
        found = (of_length + kinds * found) / (total + kinds)
    return np.log(found).astype(np.float32).reshape(-1, classes)


def follow_context(context: jax.Array, symbol: jax.Array, table: jax.Array) -> jax.Array:
    """The row of a table for the context `context` with one more symbol; the first context of a text is row 0."""
    contexts, classes = table.shape
    return ((context * classes + symbol) % contexts).astype(jnp.int32)
