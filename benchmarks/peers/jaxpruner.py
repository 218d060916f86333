"""Prunes by jaxpruner, which was last changed in April 2024; for sparse_step."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax


def wrap(
    tx: optax.GradientTransformation, sparsity: float, steps: int, every: int
) -> tuple[optax.GradientTransformation, Callable[[Any, Any], Any]]:
    """Wraps an optimizer in magnitude pruning, each layer alike, by the schedule of `gradual`.

    Returns:
      The optimizer, and (new params, its state) -> params: what is left to do behind an update.
    """
    # JAX has the function by another name now, and jaxpruner does not know.
    jax.__dict__.setdefault("tree_map", jax.tree.map)
    theirs = importlib.import_module("jaxpruner")
    distributions = theirs.sparsity_distributions
    pruner = theirs.MagnitudePruning(
        scheduler=theirs.PolynomialSchedule(
            update_freq=every, update_start_step=0, update_end_step=round(0.75 * steps), power=3
        ),
        sparsity_distribution_fn=partial(
            distributions.uniform, sparsity=sparsity, filter_fn=distributions.KERNEL_FILTER_FN
        ),
    )
    return pruner.wrap_optax(tx), pruner.post_gradient_update
