"""Sequences that a model writes token by token: one loop on the device, with a cache that each step hands on.

The model is a function ``step(token, cache) -> (logits, cache)``: `token` (B,) int32, `logits` (B, vocabulary), and a
pytree `cache` of which every leaf has the batch as its first axis.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.tasks.decoding.log_probabilities import find_log_probabilities

PyTree = Any
StepFunction = Callable[[jax.Array, PyTree], tuple[jax.Array, PyTree]]
"""(token (B,), cache) -> (logits (B, vocabulary), cache)."""
Choose = Callable[[jax.Array, jax.Array], jax.Array]
"""(number of the step, logits (B, vocabulary)) -> token (B,)."""


class Decoded(NamedTuple):
    """One sequence for each row."""

    tokens: jax.Array
    """(B, length) int32, without the end, filled up with `pad`."""
    lengths: jax.Array
    """(B,) int32: how many tokens there are, the end not among them."""
    scores: jax.Array
    """(B,) float32: log probability, that of the end included; NaN where the logits were NaN, +inf or all -inf."""


class _State(NamedTuple):
    number: jax.Array
    token: jax.Array
    cache: PyTree
    decoded: Decoded
    done: jax.Array


def decode_greedily(
    step: StepFunction,
    cache: PyTree,
    begin: jax.Array,
    end: int,
    length: int,
    pad: int,
    limit: jax.Array | None = None,
) -> Decoded:
    """Takes the most probable token at each step, of equal ones the first.

    The loop ends as soon as all rows are done: at the end token, at their limit, or where no probabilities are left.

    Args:
      step: the model.
      cache: what it is called with first.
      begin: (B,) int32, the first tokens.
      end: the token behind the last one.
      length: tokens at most, the end among them: as many as the cache has places.
      pad: what rows are filled up with.
      limit: (B,) int32, the same of each row, where it is less.
    """
    return write_tokens(step, cache, begin, end, length, pad, limit, lambda _, logits: logits.argmax(-1))


def write_tokens(
    step: StepFunction,
    cache: PyTree,
    begin: jax.Array,
    end: int,
    length: int,
    pad: int,
    limit: jax.Array | None,
    choose: Choose,
) -> Decoded:
    """As `decode_greedily`, with the tokens that `choose` chooses of the logits of each step."""
    most = row_limits(begin, length, limit)
    nothing = Decoded(
        jnp.full((begin.shape[0], length), pad, jnp.int32),
        jnp.zeros_like(most),
        jnp.zeros(begin.shape[0], jnp.float32),
    )

    def write(state: _State) -> _State:
        number, token, cache, decoded, done = state
        logits, cache = step(token, cache)
        now = find_log_probabilities(logits)
        chosen = choose(number, logits).astype(jnp.int32)
        broken = jnp.isnan(now).any(-1)
        gained = jnp.where(broken, jnp.nan, jnp.take_along_axis(now, chosen[:, None], 1)[:, 0])
        writes = ~done & ~broken & (chosen != end)
        decoded = Decoded(
            decoded.tokens.at[:, number].set(jnp.where(writes, chosen, pad)),
            decoded.lengths + writes,
            jnp.where(done, decoded.scores, decoded.scores + gained),
        )
        return _State(number + 1, chosen, cache, decoded, ~writes | (number + 1 >= most))

    start = _State(jnp.zeros((), jnp.int32), begin.astype(jnp.int32), cache, nothing, most <= 0)
    return jax.lax.while_loop(lambda state: ~state.done.all(), write, start).decoded


def row_limits(begin: jax.Array, length: int, limit: jax.Array | None) -> jax.Array:
    """(B,) int32: tokens that each row may have, `length` where there is no `limit`."""
    whole = jnp.full(begin.shape, length, jnp.int32)
    return whole if limit is None else jnp.minimum(limit.astype(jnp.int32), whole)
