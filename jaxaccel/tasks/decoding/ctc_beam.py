"""Prefix beam search: the most probable symbols over all their alignments, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.tasks.decoding.ctc_greedy import FILL, Symbols
from jaxaccel.tasks.decoding.log_probabilities import NEVER, find_log_probabilities

_MULTIPLIERS = (1_000_003, 2_654_435_761)  # odd: prefixes are told apart by two sums of 32 bits


class _Beam(NamedTuple):
    """K prefixes of one utterance."""

    symbols: jax.Array
    """(K, L) int32, filled up with -1."""
    length: jax.Array
    """(K,) int32."""
    name: jax.Array
    """(K, 2) uint32, the same for equal prefixes."""
    blank: jax.Array
    """(K,) log probability of the prefix over alignments that end in a blank."""
    symbol: jax.Array
    """(K,) the same, of those that end in its last symbol."""


def search_prefixes(logits: jax.Array, outputs: jax.Array, beam: int, blank: int = 0) -> Symbols:
    """Finds the most probable sequences of symbols (Graves & Jaitly 2014; Hannun et al. 2014, arXiv:1408.2873).

    A prefix is kept once, with the sum over its alignments that no step has cut off. With a beam as wide as there are
    prefixes the scores are exact.

    Args:
      logits: (B, T, classes) of any float.
      outputs: (B,) int, how many of T count.
      beam: prefixes that are kept at each step, K.
      blank: the class of no symbol.

    Returns:
      K sequences of each, the best first; those that there are not have scores of -1e30 or less.
    """
    probabilities = find_log_probabilities(logits)
    return jax.vmap(lambda p, count: _search(p, count, beam, blank))(probabilities, outputs)


def _search(probabilities: jax.Array, count: jax.Array, width: int, blank: int) -> Symbols:
    """One utterance: probabilities (T, classes)."""
    steps = probabilities.shape[0]
    start = _Beam(
        jnp.full((width, steps), FILL, jnp.int32),
        jnp.zeros(width, jnp.int32),
        jnp.zeros((width, 2), jnp.uint32),
        jnp.full(width, NEVER).at[0].set(0.0),
        jnp.full(width, NEVER),
    )

    def step(beam: _Beam, at: tuple[jax.Array, jax.Array]) -> tuple[_Beam, None]:
        number, now = at
        moved = _advance(beam, now, blank)
        return jax.tree.map(lambda new, old: jnp.where(number < count, new, old), moved, beam), None

    beam, _ = jax.lax.scan(step, start, (jnp.arange(steps), probabilities))
    scores, order = jax.lax.top_k(jnp.logaddexp(beam.blank, beam.symbol), width)
    return Symbols(beam.symbols[order], scores)


def _advance(beam: _Beam, now: jax.Array, blank: int) -> _Beam:
    """The best prefixes after one more output, whose log probabilities are `now` (classes,)."""
    width, classes = len(beam.length), len(now)
    whole = jnp.logaddexp(beam.blank, beam.symbol)
    last = jnp.where(
        beam.length > 0,
        jnp.take_along_axis(beam.symbols, jnp.maximum(beam.length - 1, 0)[:, None], 1)[:, 0],
        blank,
    )
    every = jnp.arange(classes)
    # A symbol that repeats the last one makes the prefix longer only behind a blank.
    before = jnp.where(every == last[:, None], beam.blank[:, None], whole[:, None])
    longer = jnp.where(every == blank, NEVER, before + now)
    stays = jnp.where(beam.length > 0, beam.symbol + now[last], NEVER)
    # Prefix i made longer may be prefix j, which is kept already: their alignments are added up there.
    names = _extend(beam.name[:, None], last[None, :])
    same = (names == beam.name[None]).all(-1) & (beam.length[None] == beam.length[:, None] + 1)
    joined = jnp.where(same, longer[:, last], NEVER)
    stays = jnp.logaddexp(stays, jax.nn.logsumexp(joined, axis=0))
    taken = (same[..., None] & (every == last[None, :, None])).any(1)
    longer = jnp.where(taken, NEVER, longer)
    ends = whole + now[blank]
    found = jnp.concatenate([jnp.logaddexp(ends, stays), longer.reshape(-1)])
    _, chosen = jax.lax.top_k(found, width)
    grows = chosen >= width
    parent = jnp.where(grows, (chosen - width) // classes, chosen)
    added = jnp.where(grows, (chosen - width) % classes, FILL)
    length = beam.length[parent]
    symbols = beam.symbols[parent]
    place = jnp.where(grows, length, symbols.shape[1])
    return _Beam(
        symbols.at[jnp.arange(width), place].set(added, mode="drop"),
        length + grows,
        jnp.where(grows[:, None], _extend(beam.name[parent], added), beam.name[parent]),
        jnp.where(grows, NEVER, ends[parent]),
        jnp.where(grows, found[chosen], stays[parent]),
    )


def _extend(name: jax.Array, symbol: jax.Array) -> jax.Array:
    """(..., 2): the name of a prefix with one more symbol (...)."""
    return name * jnp.asarray(_MULTIPLIERS, jnp.uint32) + (symbol[..., None] + 1).astype(jnp.uint32)
