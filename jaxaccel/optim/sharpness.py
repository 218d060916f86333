"""Sharpness-aware minimization around any optimizer.

SAM: Foret et al. 2021, arXiv:2010.01412. ASAM, which does not depend on the scale of the weights: Kwon et al. 2021,
arXiv:2102.11600.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxaccel.core import numerics
from jaxaccel.errors import UserError

PyTree = Any

# η of ASAM, "for stability": weights near zero are moved too.
_ETA = 0.01


def sharpness_aware(
    tx: optax.GradientTransformation, rho: float = 0.05, adaptive: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`tx`, fed with the gradient at the point near by where the loss is largest, to first order.

    The state is that of `tx`. The update takes the gradient's function as well, for the batch that `updates` is of:

        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)

    ``grad_fn(params) -> grads`` is called once; what else a model's step changes, such as the statistics of BatchNorm,
    it leaves out, so that these are of the weights themselves.

    Args:
      tx: the optimizer; further extra arguments are passed on to it.
      rho: radius of the ball in which the loss is largest, in the Euclidean norm of all weights together. About ten
        times as large with `adaptive`.
      adaptive: ASAM: the ball is an ellipsoid that is as long along each axis as the weight is large.

    Raises:
      UserError: `rho` is not positive; at the update, `params` or `grad_fn` is missing.
    """
    if not rho > 0:
        raise UserError(f"sharpness_aware: rho={rho} must be positive")
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        grad_fn: Callable[[PyTree], PyTree] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, PyTree]:
        if grad_fn is None or params is None:
            raise UserError("sharpness_aware: call update(grads, state, params, grad_fn=...)")
        highest = jax.tree.map(jnp.add, params, worst_offset(updates, params, rho, adaptive))
        return tx.update(grad_fn(highest), state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def worst_offset(grads: PyTree, params: PyTree, rho: float, adaptive: bool = False) -> PyTree:
    """Where in the ball of radius `rho` around `params` the linearized loss is largest: ρ g / |g|.

    With `adaptive` it is ρ T² g / |T g| where T is |w| + 0.01, element by element. Zero where the gradient is.
    """
    weights = jax.tree.map(numerics.widen, params)
    sizes = jax.tree.map(lambda p: jnp.abs(p) + _ETA if adaptive else jnp.ones_like(p), weights)
    scaled = jax.tree.map(lambda t, g: t * g.astype(t.dtype), sizes, grads)
    norm = optax.tree.norm(scaled)
    factor = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda t, s, p: (factor * t * s).astype(p.dtype), sizes, scaled, params)
