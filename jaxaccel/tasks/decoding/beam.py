"""Beam search: the most probable sequences of tokens, several hypotheses a row at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.core.options import Count, NonNegative, checked
from jaxaccel.tasks.decoding.log_probabilities import NEVER, find_log_probabilities
from jaxaccel.tasks.decoding.token_by_token import PyTree, StepFunction, row_limits


class Beams(NamedTuple):
    """Several sequences for each row, the best first."""

    tokens: jax.Array
    """(B, beam, length) int32, without the end, filled up with `pad`."""
    lengths: jax.Array
    """(B, beam) int32: how many tokens there are, the end not among them."""
    scores: jax.Array
    """(B, beam) float32: log probability / ((5 + n) / 6) ** alpha; NaN where the logits were NaN, +inf or all -inf,
    and -1e30 or less where there are not so many sequences."""


class _Live(NamedTuple):
    """Hypotheses that go on, the best first: (B, beam, ...)."""

    tokens: jax.Array
    scores: jax.Array
    """Log probabilities."""


class _State(NamedTuple):
    number: jax.Array
    last: jax.Array
    """(B, beam): the last token of each live hypothesis."""
    cache: PyTree
    """Every leaf has rows and hypotheses together as its first axis, (B * beam, ...)."""
    live: _Live
    finished: Beams
    done: jax.Array


@checked
def search_beams(
    step: StepFunction,
    cache: PyTree,
    begin: jax.Array,
    end: int,
    length: int,
    pad: int,
    beam: Count,
    alpha: NonNegative = 0.0,
    limit: jax.Array | None = None,
) -> Beams:
    """Finds probable sequences, the best first.

    Each step makes every live hypothesis longer by every token. Of the `beam` best of all, those that end are finished,
    and the `beam` best of those that do not end live on. A score is the log probability divided by ((5 + n) / 6) **
    alpha (Wu et al. 2016, arXiv:1609.08144), where n counts the tokens and the end. Hypotheses that reach the limit are
    finished without an end. A row is done once no live hypothesis can have a better score than its `beam` finished
    ones, however long it becomes; so the search finds the same as one that goes on to the limit. With a beam of 1 and
    an alpha of 0 it is `decode_greedily`. Of equal scores the shorter hypothesis is first, then that of the better
    prefix, then the first token.

    Args:
      step: the model, as of `decode_greedily`. It is called with `beam` hypotheses of each row side by side.
      cache: what it is called with first, one row for each of the batch. A leaf that `step` returns as it is stays as
        it is.
      begin: (B,) int32, the first tokens.
      end: the token behind the last one.
      length: tokens at most, the end among them: as many as the cache has places.
      pad: what rows are filled up with.
      beam: hypotheses that are kept.
      alpha: how much longer hypotheses are preferred; 0 compares log probabilities.
      limit: (B,) int32, the tokens of each row at most, where they are fewer than `length`.

    Raises:
      UserError: `beam` is below 1, or `alpha` below 0.
    """
    rows, most = begin.shape[0], row_limits(begin, length, limit)
    penalty_at_limit = _penalty(most, alpha)[:, None]
    first = jnp.arange(beam) == 0

    def advance(state: _State) -> _State:
        number, last, cache, live, finished, done = state
        logits, after = step(last.reshape(-1), cache)
        now = find_log_probabilities(logits).reshape(rows, beam, -1)
        alive = live.scores > NEVER
        broken = (jnp.isnan(now).any(-1) & alive).any(-1)
        scores = jnp.where(alive[..., None], jnp.fmax(live.scores[..., None] + now, NEVER), NEVER)
        best, parents, chosen = _take_best(scores, 2 * beam)
        ends = (chosen == end) & (best > NEVER)
        ended = jnp.where(ends, best, NEVER)[:, :beam]
        # Stable: those that go on, in their order.
        onward = jnp.argsort(jnp.where(chosen == end, 1, 0), axis=1, stable=True)[:, :beam]
        onward_parents, onward_tokens = _pick(parents, onward), _pick(chosen, onward)
        onward_scores = jnp.where(onward_tokens == end, NEVER, _pick(best, onward))
        before = _pick(live.tokens, onward_parents)
        live = _Live(before.at[:, :, number].set(onward_tokens), onward_scores)

        count = number + 1
        at_limit = count >= most
        penalty = _penalty(count, alpha)
        cut = jnp.where(at_limit[:, None], onward_scores, NEVER)
        ended_tokens, lengths = _pick(state.live.tokens, parents[:, :beam]), jnp.full((rows, beam), number)
        merged = _merge(
            finished,
            Beams(ended_tokens, lengths, _normalize(ended, penalty)),
            Beams(live.tokens, lengths + 1, _normalize(cut, penalty)),
        )
        merged = merged._replace(scores=jnp.where(broken[:, None], jnp.nan, merged.scores))
        finished = jax.tree.map(lambda new, old: jnp.where(_like(done, new), old, new), merged, finished)
        # Log probabilities only fall: no live hypothesis can be better than the best one, divided by the most.
        attainable = _normalize(onward_scores[:, :1], penalty_at_limit)[:, 0]
        done = done | at_limit | broken | (finished.scores[:, -1] >= attainable)
        return _State(count, onward_tokens, _follow(after, cache, onward_parents), live, finished, done)

    empty = jnp.full((rows, beam, length), pad, jnp.int32)
    start = _State(
        jnp.zeros((), jnp.int32),
        jnp.broadcast_to(begin.astype(jnp.int32)[:, None], (rows, beam)),
        jax.tree.map(lambda x: jnp.repeat(x, beam, axis=0), cache),
        _Live(empty, jnp.broadcast_to(jnp.where(first, 0.0, NEVER), (rows, beam))),
        Beams(
            empty,
            jnp.zeros((rows, beam), jnp.int32),
            jnp.where((most <= 0)[:, None] & first, 0.0, NEVER),
        ),
        most <= 0,
    )
    return jax.lax.while_loop(lambda state: ~state.done.all(), advance, start).finished


def _penalty(count: jax.Array, alpha: float) -> jax.Array:
    return ((5 + count.astype(jnp.float32)) / 6) ** alpha


def _normalize(scores: jax.Array, penalty: jax.Array) -> jax.Array:
    """Divides log probabilities, and leaves what cannot be as it is."""
    return jnp.where(scores > NEVER, scores / penalty, NEVER)


def _take_best(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best continuations of (B, beam, vocabulary): scores, hypotheses and tokens, each (B, count).

    There may be fewer; others have the score NEVER.
    """
    rows, _, vocabulary = scores.shape
    flat = scores.reshape(rows, -1)
    if missing := max(count - flat.shape[1], 0):
        flat = jnp.pad(flat, ((0, 0), (0, missing)), constant_values=NEVER)
    best, at = jax.lax.top_k(flat, count)
    at = jnp.minimum(at, scores[0].size - 1)
    return best, at // vocabulary, at % vocabulary


def _merge(*parts: Beams) -> Beams:
    """The best of several, as many as each has; of equal ones that of the first part."""
    together = Beams(*(jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True)))
    _, order = jax.lax.top_k(together.scores, parts[0].scores.shape[1])
    return Beams(*(_pick(x, order) for x in together))


def _pick(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Takes `chosen` (B, n) of the second axis of `x` (B, m, ...)."""
    return jax.vmap(lambda x, i: x[i])(x, chosen)


def _like(x: jax.Array, other: jax.Array) -> jax.Array:
    return x.reshape(x.shape + (1,) * (other.ndim - x.ndim))


def _follow(after: PyTree, before: PyTree, parents: jax.Array) -> PyTree:
    """The caches of the hypotheses that live on, of those that they came from."""
    rows, beam = parents.shape
    at = (jnp.arange(rows)[:, None] * beam + parents).reshape(-1)
    # All hypotheses of a row began with the same leaves: one that no step changes is that of the parent too.
    return jax.tree.map(lambda new, old: new if new is old else new[at], after, before)
