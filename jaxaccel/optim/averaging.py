"""Averages of weights over training, and the BatchNorm statistics that belong to them."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxaccel.errors import UserError

PyTree = Any
Batch = Any

# A power of two that float16 holds as well, and larger than most statistics: see `reestimator`.
_PROBE = 4096.0


@dataclasses.dataclass(frozen=True)
class Averaging:
    """An average of the weights, as an ``init``/``update`` pair.

    Up to step `start` it is the weights themselves. From there on every `every`-th step's weights are taken in: with
    equal weights (stochastic weight averaging, Izmailov et al. 2018, arXiv:1803.05407), or, with a `decay`, as an
    exponential moving average. A model with BatchNorm needs `reestimator` before it is evaluated at the average.

        averaging = Averaging(start=1000, every=100)
        average = averaging.init(params)
        average = averaging.update(average, params, step)  # after each step, `step` steps being done
    """

    decay: float | jax.Array = 0.0
    """Of the exponential moving average; 0 weights all samples equally."""
    start: int = 0
    """Steps done when the first sample is taken."""
    every: int = 1
    """Steps from one sample to the next."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        decay_fits = (
            isinstance(self.decay, jax.Array) or 0 <= self.decay < 1
        )  # an array differs between replicas
        if not decay_fits or self.start < 0 or self.every < 1:
            raise UserError(
                "an Averaging needs 0 <= decay < 1, start >= 0 and every >= 1, got"
                f" decay={self.decay}, start={self.start}, every={self.every}"
            )

    def init(self, params: PyTree) -> PyTree:
        """A copy of the weights, in float32 at least: an average in bfloat16 would not move."""
        return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)

    def update(self, average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        """The average when `step` steps (() int) are done, the last of which led to `params`."""
        since = jnp.asarray(step) - self.start
        share = (
            1 - self.decay
            if isinstance(self.decay, jax.Array) or self.decay
            else 1 / (since // self.every + 1)
        )
        share = jnp.where(since <= 0, 1.0, jnp.where(since % self.every == 0, share, 0.0))
        return optax.incremental_update(params, average, share)


def weights_to_evaluate(opt_state: PyTree, params: PyTree) -> PyTree | None:
    """The weights that a schedule-free optimizer (Defazio et al. 2024, arXiv:2405.15682) is evaluated at, which it

    does not train at; None for any other.
    """
    is_free = lambda x: isinstance(x, optax.contrib.ScheduleFreeState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_free) if is_free(x)]
    return optax.contrib.schedule_free_eval_params(found[0], params) if found else None


def reestimator(
    apply: Callable[[PyTree, PyTree, Batch], PyTree],
) -> Callable[[PyTree, PyTree, Iterable[Batch]], PyTree]:
    """(params, model_state, batches) -> the running statistics that `params` have over `batches`.

    They are the plain mean of the batches' own statistics. A running statistic goes from s to m s + (1 - m) b, where b
    is that of the batch; m and b are found by calling `apply` with s = 0 and with s = 4096. Both calls are in one
    program, whose compiler merges what they share, the network, so that it runs once a batch. A large power of two
    leaves m its digits whatever b is.

    Leaves of the state that are no running statistics (counters, integers, what stays as it was) keep their values.
    Batches of different shapes need a program each; without any it raises a `UserError`.

    Args:
      apply: (params, model_state, batch) -> the new model state, in training mode. It is jitted here.
    """
    probe = jax.jit(partial(_probed, apply))

    def reestimated(params: PyTree, model_state: PyTree, batches: Iterable[Batch]) -> PyTree:
        total, momentum, count = None, None, 0
        for batch in batches:
            low, momentum = probe(params, model_state, batch)
            total = low if total is None else jax.tree.map(jnp.add, total, low)
            count += 1
        if not count:
            raise UserError("BatchNorm statistics are computed from at least one batch")

        def mean(old: jax.Array, total: jax.Array, m: jax.Array) -> jax.Array:
            if not _is_float(old):
                return old
            runs = (m >= 0) & (m < 1)
            return jnp.where(runs, total / (count * jnp.where(runs, 1 - m, 1)), old).astype(old.dtype)

        return jax.tree.map(mean, model_state, total, momentum)

    return reestimated


def _probed(
    apply: Callable[[PyTree, PyTree, Batch], PyTree], params: PyTree, model_state: PyTree, batch: Batch
) -> tuple[PyTree, PyTree]:
    """(1 - m) b and m of each element of the state; zeros for what is not a float."""

    def after(value: float) -> PyTree:
        state = jax.tree.map(lambda s: jnp.full_like(s, value) if _is_float(s) else s, model_state)
        state = apply(params, state, batch)
        return jax.tree.map(lambda s: s.astype(jnp.float32) if _is_float(s) else jnp.float32(0), state)

    low, high = after(0.0), after(_PROBE)
    return low, jax.tree.map(lambda a, b: (b - a) / _PROBE, low, high)


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
