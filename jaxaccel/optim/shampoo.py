"""Shampoo: gradients preconditioned on both sides (Gupta et al. 2018, arXiv:1802.09568)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.optim.kronecker import (
    Sides,
    at_least_float32,
    average_factors,
    identities,
    inverse_roots,
    multiply_sides,
    zero_factors,
)

PyTree = Any


class ShampooState(NamedTuple):
    """What Shampoo keeps. Moments have their parameter's path as a suffix; its factors stand below that path."""

    step: jax.Array
    """() int32: updates done."""
    mu: PyTree
    """Moving average of the gradients."""
    nu: PyTree
    """Moving average of their squares."""
    factors: PyTree
    """`kronecker.Sides` for each parameter: moving averages of G Gᵀ and Gᵀ G."""
    roots: PyTree
    """`kronecker.Sides` for each parameter: the inverse roots that precondition."""


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    update_every: int = 10,
    max_size: int = 1024,
    damping: float = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo with the step size of Adam and decoupled weight decay.

    Args:
      learning_rate: as for Adam, a number or a schedule.
      b1: decay of the moving average of the gradients.
      b2: decay of the moving averages of their squares and of the Kronecker factors.
      eps: added to Adam's denominator.
      update_every: steps from one computation of the inverse roots to the next. The other steps cost products with the
        factors only.
      max_size: a side of a matrix that is longer is left alone.
      damping: added to a factor's eigenvalues, the largest of which is 1.
      weight_decay: of the parameters, times the learning rate.
      mask: which parameters decay: a tree of bools or a function that makes it from the parameters.
    """
    return optax.chain(
        scale_by_shampoo(b1, b2, eps, update_every, max_size, damping),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_shampoo(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    update_every: int = 10,
    max_size: int = 1024,
    damping: float = 1e-6,
) -> optax.GradientTransformation:
    """The direction L^(-1/4) M R^(-1/4) of each matrix, as long as Adam's step for it (`shampoo` has the arguments).

    M is the moving average of the gradients. The length is Adam's ("grafting", Agarwal et al. 2020, arXiv:2002.11803;
    Anil et al. 2020, arXiv:2002.09018) because learning rates and schedules found for Adam then hold, and because
    vectors, which have no factors, simply take Adam's step. Arrays of more than two axes are taken as
    `kronecker.matrix_shape` says. Roots are computed in steps 0, `update_every`, ... under `lax.cond`; where `vmap`
    maps over states that becomes a select, and they are computed in each step.
    """

    def init(params: PyTree) -> ShampooState:
        def zeros() -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros_like(at_least_float32(p)), params)

        return ShampooState(
            step=jnp.int32(0),
            mu=zeros(),
            nu=zeros(),
            factors=jax.tree.map(lambda p: zero_factors(p, max_size), params),
            roots=jax.tree.map(lambda p: identities(p, max_size), params),
        )

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, ShampooState]:
        del params
        count = state.step + 1
        grads = jax.tree.map(at_least_float32, updates)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        factors = jax.tree.map(lambda g, f: average_factors(f, g, b2), grads, state.factors)
        roots = jax.lax.cond(
            state.step % update_every == 0,
            lambda: jax.tree.map(lambda _, f: inverse_roots(f, damping), grads, factors),
            lambda: state.roots,
        )

        def step(m: jax.Array, v: jax.Array, sides: Sides) -> jax.Array:
            adam = (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + eps)
            if sides[0] is None and sides[1] is None:
                return adam
            direction = multiply_sides(sides, m)
            length = jnp.linalg.norm(direction)
            scale = jnp.where(length > 0, jnp.linalg.norm(adam) / jnp.where(length > 0, length, 1), 0)
            return direction * scale

        steps = optax.tree.cast_like(jax.tree.map(step, mu, nu, roots), updates)
        return steps, ShampooState(count, mu, nu, factors, roots)

    return optax.GradientTransformation(init, update)
