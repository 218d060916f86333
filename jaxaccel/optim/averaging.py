"""Averages of weights over training, and the BatchNorm statistics that belong to them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxaccel.core import numerics
from jaxaccel.core.options import Options
from jaxaccel.errors import UserError
from jaxaccel.optim.lookahead import LookaheadState

PyTree = Any
Batch = Any

# A power of two that float16 holds as well, and larger than most statistics: see `make_reestimator`.
_PROBE = 4096.0


@dataclasses.dataclass(frozen=True)
class Averaging(Options):
    """An average of the weights, as an ``init``/``update`` pair.

    With a `decay` it is the exponential moving average over all steps. Else it is the mean of the weights at the steps
    `at` (stochastic weight averaging, Izmailov et al. 2018, arXiv:1803.05407), and up to the first of them the weights
    themselves. A model with BatchNorm needs `make_reestimator` before it is evaluated at the average.

        averaging = Averaging(at=range(1000, 2000, 100))
        average = averaging.init(params)
        average = averaging.update(average, params, step)  # after each step, `step` steps being done
    """

    decay: float | jax.Array = 0.0
    """Decay of the exponential moving average."""
    at: Sequence[int] = ()
    """Steps done when a sample for the mean is taken, in rising order."""

    def check_values(self) -> None:
        """Checks that there is one kind of average."""
        # An array differs between replicas.
        decays = isinstance(self.decay, jax.Array) or 0 < self.decay < 1
        rising = len(self.at) > 0 and all(a < b for a, b in itertools.pairwise((-1, *self.at)))
        if decays == rising:
            raise UserError(
                "an Averaging needs either a decay between 0 and 1 or rising steps at which to sample, "
                f"got decay={self.decay}, at={tuple(self.at)}"
            )

    def init(self, params: PyTree) -> PyTree:
        """A copy of the weights, in float32 at least: an average in bfloat16 would not move."""
        return jax.tree.map(lambda p: jnp.array(numerics.widen(p)), params)

    def update(self, average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        """The average when `step` steps (() int) are done, the last of which led to `params`."""
        # In the average's own dtype, before anything is multiplied.
        params = jax.tree.map(lambda p, a: p.astype(a.dtype), params, average)
        if not self.at:
            return optax.incremental_update(params, average, 1 - self.decay)
        at = jnp.asarray(tuple(self.at))
        share = jnp.where(jnp.any(at == step), 1 / jnp.maximum(jnp.sum(at <= step), 1), 0.0)
        return optax.incremental_update(params, average, jnp.where(step <= at[0], 1.0, share))


def weights_to_evaluate(opt_state: PyTree, params: PyTree) -> PyTree | None:
    """The weights at which an optimizer is evaluated that does not train them itself; None for any other.

    Those are the average of a schedule-free optimizer (Defazio et al. 2024, arXiv:2405.15682), and the slow weights of
    Lookahead. Parameters that are frozen, and masked in the optimizer's state, are themselves.
    """
    kinds = (optax.contrib.ScheduleFreeState, LookaheadState)
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kinds))
    for state in states:
        if isinstance(state, LookaheadState):
            return _or(state.slow, params)
        if isinstance(state, optax.contrib.ScheduleFreeState):
            free = jax.tree.map(
                lambda z, p: z if _is_masked(z) else p.astype(z.dtype), state.z, params, is_leaf=_is_masked
            )
            return _or(optax.contrib.schedule_free_eval_params(state, free), params)
    return None


def _or(weights: PyTree, params: PyTree) -> PyTree:
    """`weights`, and `params` where they are masked, in the dtypes of `params`."""
    # Copies: what is evaluated may be donated together with the parameters.
    return jax.tree.map(
        lambda w, p: jnp.array(p if _is_masked(w) else w, p.dtype), weights, params, is_leaf=_is_masked
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def make_reestimator(
    apply: Callable[[PyTree, PyTree, Batch], PyTree],
) -> Callable[[PyTree, PyTree, Iterable[Batch]], PyTree]:
    """(params, model_state, batches) -> the running statistics that `params` have over `batches`.

    They are the plain mean of the batches' own statistics. A running statistic goes from s to m s + (1 - m) b, where b
    is that of the batch; m and b are found by calling `apply` with s = 0 and with s = 4096. Both calls are in one
    program, whose compiler merges what they share, the network, so that it runs once a batch. A large power of two
    leaves m its digits whatever b is.

    What is no running statistic keeps its values: leaves that a look at the first batch does not move, such as fixed
    kernels, and integers. Batches of different shapes need a program each; without any it raises a `UserError`.

    Args:
      apply: (params, model_state, batch) -> the new model state, in training mode. It is jitted here.
    """
    probe = jax.jit(partial(_probed, apply), static_argnums=0)
    moved = jax.jit(partial(_moved, apply))

    def reestimated(params: PyTree, model_state: PyTree, batches: Iterable[Batch]) -> PyTree:
        runs, total, momentum, count = (), None, None, 0
        for batch in batches:
            runs = runs or tuple(bool(x) for x in moved(params, model_state, batch))
            low, momentum = probe(runs, params, model_state, batch)
            total = low if total is None else jax.tree.map(jnp.add, total, low)
            count += 1
        if total is None:
            raise UserError("BatchNorm statistics are computed from at least one batch")

        def mean(old: jax.Array, total: jax.Array, m: jax.Array) -> jax.Array:
            averages = (m >= 0) & (m < 1)
            return jnp.where(averages, total / (count * jnp.where(averages, 1 - m, 1)), old).astype(old.dtype)

        return _of_statistics(runs, mean, model_state, total, momentum)

    return reestimated


def _moved(
    apply: Callable[[PyTree, PyTree, Batch], PyTree], params: PyTree, model_state: PyTree, batch: Batch
) -> list[jax.Array]:
    """Of each leaf of the state, whether it is of floats and a look at the batch changes it."""
    after = apply(params, model_state, batch)
    return [
        jnp.any(new != old) & _is_float(old)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(model_state), strict=True)
    ]


def _probed(
    apply: Callable[[PyTree, PyTree, Batch], PyTree],
    runs: tuple[bool, ...],
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
) -> tuple[PyTree, PyTree]:
    """(1 - m) b and m of each element of the leaves that `runs` names; the rest of the state is only a place."""

    def after(value: float) -> PyTree:
        state = _of_statistics(runs, lambda s: jnp.full_like(s, value), model_state)
        return _of_statistics(runs, lambda s: s.astype(jnp.float32), apply(params, state, batch))

    low, high = after(0.0), after(_PROBE)
    return low, _of_statistics(runs, lambda a, b: (b - a) / _PROBE, low, high)


def _of_statistics(runs: tuple[bool, ...], f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`f` of the leaves that are running statistics, the others as `tree` has them."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = zip(runs, leaves, *map(jax.tree.leaves, rest), strict=True)
    return jax.tree.unflatten(treedef, [f(*own) if run else own[0] for run, *own in columns])


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
