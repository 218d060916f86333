"""Which output of a model that was trained by CTC said which symbol."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.tasks.decoding.log_probabilities import NEVER, find_log_probabilities


class Spans(NamedTuple):
    """Where each symbol was said, in outputs."""

    starts: jax.Array
    """(B, L) int32, the first output of each symbol; -1 where there is none."""
    ends: jax.Array
    """(B, L) int32, the output behind its last one."""
    scores: jax.Array
    """(B,) float32: the log probability of the alignment, -1e30 or less where there is none."""


def align_ctc(
    logits: jax.Array, outputs: jax.Array, symbols: jax.Array, counts: jax.Array, blank: int = 0
) -> Spans:
    """Finds the most probable alignment of given symbols (Viterbi).

    Args:
      logits: (B, T, classes) of any float.
      outputs: (B,) int, how many of T count.
      symbols: (B, L) int; what lies behind `counts` is ignored.
      counts: (B,) int.
      blank: the class of no symbol.
    """
    probabilities = find_log_probabilities(logits)
    there = jnp.arange(symbols.shape[1]) < counts[:, None]
    kept = jnp.where(there, symbols, blank).astype(jnp.int32)
    align = jax.vmap(_align, in_axes=(0, 0, 0, 0, None))
    return align(probabilities, outputs, kept, counts, blank)


def _align(
    probabilities: jax.Array, outputs: jax.Array, symbols: jax.Array, count: jax.Array, blank: Any
) -> Spans:
    """One utterance. State 2 * l + 1 is symbol l, the even ones are the blanks around."""
    steps, states = len(probabilities), 2 * len(symbols) + 1
    classes = jnp.full(states, blank).at[1::2].set(symbols)
    place = jnp.arange(states)
    two_back = jnp.roll(classes, 2)
    jumps = (place % 2 == 1) & (place >= 2) & (classes != two_back)
    start = jnp.where(place < 2, probabilities[0][classes], NEVER)

    def forward(scores: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, now = at
        one = jnp.where(place >= 1, jnp.roll(scores, 1), NEVER)
        two = jnp.where(jumps, jnp.roll(scores, 2), NEVER)
        came = jnp.stack([scores, one, two])
        moved = came.max(0) + now[classes]
        inside = number < outputs
        back = jnp.where(inside, came.argmax(0), 0)
        return jnp.where(inside, moved, scores), back.astype(jnp.uint8)  # of all steps: the most memory

    rest = (jnp.arange(1, steps), probabilities[1:])
    scores, steps_back = jax.lax.scan(forward, start, rest)
    ends = jnp.stack([2 * count, jnp.maximum(2 * count - 1, 0)])
    state = ends[scores[ends].argmax()]

    def backward(state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = state - back[state]
        return before, before

    _, path = jax.lax.scan(backward, state, steps_back, reverse=True)
    path = jnp.append(path, state)
    said = (path[:, None] == 2 * jnp.arange(len(symbols)) + 1) & (jnp.arange(steps) < outputs)[:, None]
    found = said.any(0)
    first = jnp.where(found, said.argmax(0), -1)
    behind = jnp.where(found, steps - said[::-1].argmax(0), -1)
    return Spans(first.astype(jnp.int32), behind.astype(jnp.int32), scores[ends].max())
