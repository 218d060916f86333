"""Prefix beam search: the most probable symbols over all their alignments, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.tasks.decoding.ctc_greedy import FILL, Symbols
from jaxaccel.tasks.decoding.log_probabilities import NEVER, find_log_probabilities
from jaxaccel.tasks.decoding.ngram import EDGE, NgramScores, follow_context

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
    context: jax.Array
    """(K,) int32: the row of the n-gram model's table for what comes next."""
    prior: jax.Array
    """(K,) what the n-gram model adds."""


def search_prefixes(
    logits: jax.Array, outputs: jax.Array, beam: int, blank: int = 0, ngrams: NgramScores | None = None
) -> Symbols:
    """Finds the most probable sequences of symbols (Graves & Jaitly 2014; Hannun et al. 2014, arXiv:1408.2873).

    A prefix is kept once, with the sum over its alignments that no step has cut off. With a beam as wide as there are
    prefixes the scores are exact.

    Args:
      logits: (B, T, classes) of any float.
      outputs: (B,) int, how many of T count.
      beam: prefixes that are kept at each step, K.
      blank: the class of no symbol; 0 with `ngrams`.
      ngrams: a model of what is said, whose scores are added to those of the prefixes (Hannun et al.'s search).

    Returns:
      K sequences of each, the best first; those that there are not have scores of -1e30 or less. With `ngrams` scores
      are sums of both and no probabilities.
    """
    classes = logits.shape[-1]
    if ngrams is None:
        ngrams = NgramScores(jnp.zeros((1, classes)), 0.0, 0.0)
    added = ngrams.weight * jnp.asarray(ngrams.table) + ngrams.bonus * (jnp.arange(classes) != EDGE)
    probabilities = find_log_probabilities(logits)
    return jax.vmap(lambda p, count: _search(p, count, beam, blank, added))(probabilities, outputs)


def _search(probabilities: jax.Array, count: jax.Array, width: int, blank: int, added: jax.Array) -> Symbols:
    """One utterance: probabilities (T, classes), and what the n-gram model adds for each symbol in each context."""
    steps = probabilities.shape[0]
    start = _Beam(
        jnp.full((width, steps), FILL, jnp.int32),
        jnp.zeros(width, jnp.int32),
        jnp.zeros((width, 2), jnp.uint32),
        jnp.full(width, NEVER).at[0].set(0.0),
        jnp.full(width, NEVER),
        jnp.zeros(width, jnp.int32),
        jnp.zeros(width),
    )

    def step(beam: _Beam, at: tuple[jax.Array, jax.Array]) -> tuple[_Beam, None]:
        number, now = at
        moved = _advance(beam, now, blank, added)
        return jax.tree.map(lambda new, old: jnp.where(number < count, new, old), moved, beam), None

    beam, _ = jax.lax.scan(step, start, (jnp.arange(steps), probabilities))
    ended = beam.prior + added[beam.context, EDGE]
    scores, order = jax.lax.top_k(jnp.logaddexp(beam.blank, beam.symbol) + ended, width)
    return Symbols(beam.symbols[order], scores)


def _advance(beam: _Beam, now: jax.Array, blank: int, added: jax.Array) -> _Beam:
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
    priors = jnp.concatenate([beam.prior, (beam.prior[:, None] + added[beam.context]).reshape(-1)])
    _, chosen = jax.lax.top_k(found + priors, width)
    grows = chosen >= width
    parent = jnp.where(grows, (chosen - width) // classes, chosen)
    symbol = jnp.where(grows, (chosen - width) % classes, FILL)
    length = beam.length[parent]
    symbols = beam.symbols[parent]
    place = jnp.where(grows, length, symbols.shape[1])
    return _Beam(
        symbols.at[jnp.arange(width), place].set(symbol, mode="drop"),
        length + grows,
        jnp.where(grows[:, None], _extend(beam.name[parent], symbol), beam.name[parent]),
        jnp.where(grows, NEVER, ends[parent]),
        jnp.where(grows, found[chosen], stays[parent]),
        jnp.where(grows, follow_context(beam.context[parent], symbol, added), beam.context[parent]),
        priors[chosen],
    )


def _extend(name: jax.Array, symbol: jax.Array) -> jax.Array:
    """(..., 2): the name of a prefix with one more symbol (...)."""
    return name * jnp.asarray(_MULTIPLIERS, jnp.uint32) + (symbol[..., None] + 1).astype(jnp.uint32)
