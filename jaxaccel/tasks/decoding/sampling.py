"""Tokens drawn by their probabilities."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt, Interval

from jaxaccel.core.options import Count, NonNegative, checked
from jaxaccel.tasks.decoding.token_by_token import (
    Decoded,
    PyTree,
    StepFunction,
    decode_greedily,
    write_tokens,
)

ShareAboveZero = Annotated[float, Gt(0), Interval(le=1)]


@checked
def sample_tokens(
    step: StepFunction,
    cache: PyTree,
    begin: jax.Array,
    end: int,
    length: int,
    pad: int,
    keys: jax.Array,
    temperature: NonNegative = 1.0,
    top_k: Count | None = None,
    top_p: ShareAboveZero = 1.0,
    limit: jax.Array | None = None,
) -> Decoded:
    """Draws each token from the distribution that the model gives, or from a part of it.

    Scores are log probabilities under the whole distribution at temperature 1.

    Args:
      step: the model, as of `decode_greedily`.
      cache: likewise, as are `begin`, `end`, `length`, `pad` and `limit`.
      begin: (B,) int32, the first tokens.
      end: the token behind the last one.
      length: tokens at most, the end among them.
      pad: what rows are filled up with.
      keys: (B,) keys of JAX's default generator. A row's tokens depend on its own key alone, not on its batch.
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draw from so many of the most probable tokens; all where it is left out. Of equal ones the first count.
      top_p: draw from the fewest most probable tokens that have this probability together, once `temperature` and
        `top_k` were applied (Holtzman et al. 2020, arXiv:1904.09751).
      limit: (B,) int32, the tokens of each row at most.
    """
    if temperature == 0:
        return decode_greedily(step, cache, begin, end, length, pad, limit)

    def choose(number: jax.Array, logits: jax.Array) -> jax.Array:
        scaled = logits.astype(jnp.float32) / temperature
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        if top_k is None and top_p == 1:
            return jax.vmap(jax.random.categorical)(now, scaled)
        few, order = jax.lax.top_k(scaled, min(top_k or scaled.shape[-1], scaled.shape[-1]))
        chances = jax.nn.softmax(few)
        before = chances.cumsum(-1) - chances
        drawn = jax.vmap(jax.random.categorical)(now, jnp.where(before < top_p, few, -jnp.inf))
        return jnp.take_along_axis(order, drawn[:, None], 1)[:, 0]

    return write_tokens(step, cache, begin, end, length, pad, limit, choose)
