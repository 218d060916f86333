"""Lookahead (Zhang et al. 2019, arXiv:1907.08610) around any optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.core import numerics
from jaxaccel.errors import UserError

PyTree = Any


class LookaheadState(NamedTuple):
    """The slow weights, which have their parameter's path as a suffix, and the state of the fast optimizer."""

    step: jax.Array
    """() int32: updates done."""
    slow: PyTree
    """The slow weights, in float32 at least."""
    fast: PyTree
    """State of the optimizer that is wrapped."""


def lookahead(
    tx: optax.GradientTransformation,
    period: int = 5,
    step: float | Callable[[jax.Array], jax.Array | float] = 0.5,
) -> optax.GradientTransformationExtraArgs:
    """`tx`, after every `period` updates of which the slow weights go a part of the way to the weights, which then
    start again from there.

    Unlike `optax.lookahead` this takes and updates ordinary parameters: the slow weights are part of the state. The
    state of `tx` is not reset. Evaluate after a multiple of `period` updates, where both kinds of weights are equal.

    Args:
      tx: the fast optimizer; extra arguments are passed on to it.
      period: its updates from one synchronization to the next.
      step: the part of the way, in (0, 1], or a function of the updates done. The slow weights are an exponential
        moving average of the fast ones, so ``lambda count: 1 - decay(count)`` gives it a decay with a schedule.

    Raises:
      UserError: `period` is not positive or `step` a number outside of (0, 1]; at the update, `params` is missing.
    """
    if period < 1:
        raise UserError(f"lookahead: period={period} must be at least 1")
    if not callable(step) and not 0 < step <= 1:
        raise UserError(f"lookahead: step={step} must be in (0, 1]")
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> LookaheadState:
        # A copy: the state may be donated together with the parameters.
        slow = jax.tree.map(lambda p: jnp.array(numerics.widen(p)), params)
        return LookaheadState(jnp.int32(0), slow, tx.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, LookaheadState]:
        if params is None:
            raise UserError("lookahead: call update(grads, state, params)")
        updates, fast = tx.update(updates, state.fast, params, **extra)
        count = state.step + 1
        synchronizes = count % period == 0
        share = jnp.where(synchronizes, step(count) if callable(step) else step, 0)
        slow = jax.tree.map(
            lambda s, p, u: s + share.astype(s.dtype) * (p.astype(s.dtype) + u.astype(s.dtype) - s),
            state.slow, params, updates,
        )  # fmt: skip
        updates = jax.tree.map(
            lambda s, p, u: jnp.where(synchronizes, (s - p.astype(s.dtype)).astype(u.dtype), u),
            slow,
            params,
            updates,
        )
        return updates, LookaheadState(count, slow, fast)

    return optax.GradientTransformationExtraArgs(init, update)
