"""SOAP: Adam in the eigenbasis of Shampoo's factors (Vyas et al. 2024, arXiv:2409.11321)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.optim.kronecker import (
    Sides,
    at_least_float32,
    average_factors,
    eigenvectors,
    from_basis,
    identities,
    matrix_shape,
    order_columns,
    power_iteration,
    to_basis,
    zero_factors,
)

PyTree = Any


class SoapState(NamedTuple):
    """What SOAP keeps. Moments have their parameter's path as a suffix; its factors stand below that path."""

    step: jax.Array
    """() int32: gradients seen."""
    mu: PyTree
    """Moving average of the gradients, in the parameters' own coordinates."""
    nu: PyTree
    """Moving average of the squares of the gradients in the coordinates of `bases`."""
    factors: PyTree
    """`kronecker.Sides` for each parameter: moving averages of G Gᵀ and Gᵀ G."""
    bases: PyTree
    """`kronecker.Sides` for each parameter: approximate eigenvectors of the factors as columns."""


def soap(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    update_every: int = 10,
    max_size: int = 1024,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP with decoupled weight decay.

    Args:
      learning_rate: as for Adam, a number or a schedule.
      b1: decay of the moving average of the gradients.
      b2: decay of the moving averages of their squares and of the Kronecker factors.
      eps: added to Adam's denominator.
      update_every: steps from one power iteration of the bases to the next.
      max_size: a side of a matrix that is longer is left alone.
      weight_decay: of the parameters, times the learning rate.
      mask: which parameters decay: a tree of bools or a function that makes it from the parameters.
    """
    return optax.chain(
        scale_by_soap(b1, b2, eps, update_every, max_size),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, eps: float = 1e-8, update_every: int = 10, max_size: int = 1024
) -> optax.GradientTransformation:
    """Adam's step in the eigenbasis of each matrix's Kronecker factors (`soap` has the arguments).

    The first gradient only gives the bases, by `eigh`, and moves nothing: in a basis of its own a gradient is diagonal,
    and Adam would bring the rounding errors beside the diagonal to the same size. After each `update_every` further
    steps the bases are improved by one power iteration and a QR decomposition. Vectors take Adam's step, and arrays of
    more than two axes are taken as `kronecker.matrix_shape` says. Where `vmap` maps over states, the branches become a
    select and all are computed in each step.
    """

    def init(params: PyTree) -> SoapState:
        def zeros() -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros_like(at_least_float32(p)), params)

        return SoapState(
            step=jnp.int32(0),
            mu=zeros(),
            nu=zeros(),
            factors=jax.tree.map(lambda p: zero_factors(p, max_size), params),
            bases=jax.tree.map(lambda p: identities(p, max_size), params),
        )

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, SoapState]:
        del params
        count = state.step  # of those that moved something, this one included
        moves = count > 0
        grads = jax.tree.map(at_least_float32, updates)

        def rotated_square(g: jax.Array, v: jax.Array, bases: Sides) -> jax.Array:
            return jnp.where(moves, b2 * v + (1 - b2) * jnp.square(to_basis(bases, g)), v)

        def step(m: jax.Array, v: jax.Array, bases: Sides) -> jax.Array:
            # At count 0 all is zero; the correction must not divide it by zero.
            m = to_basis(bases, m) / (1 - b1 ** jnp.maximum(count, 1))
            v = v / (1 - b2 ** jnp.maximum(count, 1))
            return from_basis(bases, m / (jnp.sqrt(v) + eps))

        mu = jax.tree.map(lambda m, g: jnp.where(moves, b1 * m + (1 - b1) * g, m), state.mu, grads)
        nu = jax.tree.map(rotated_square, grads, state.nu, state.bases)
        steps = optax.tree.cast_like(jax.tree.map(step, mu, nu, state.bases), updates)
        factors = jax.tree.map(lambda g, f: average_factors(f, g, b2), grads, state.factors)

        def improved() -> tuple[PyTree, PyTree]:
            orders = jax.tree.map(order_columns, factors, state.bases)
            sorted_bases = jax.tree.map(lambda basis, by: basis[:, by], state.bases, orders)
            return jax.tree.map(power_iteration, factors, sorted_bases), jax.tree.map(_permuted, nu, orders)

        bases, nu = jax.lax.switch(
            jnp.where(count == 0, 0, jnp.where(count % update_every == 0, 1, 2)),
            [lambda: (jax.tree.map(eigenvectors, factors), nu), improved, lambda: (state.bases, nu)],
        )
        return steps, SoapState(count + 1, mu, nu, factors, bases)

    return optax.GradientTransformation(init, update)


def _permuted(x: jax.Array, orders: Sides) -> jax.Array:
    """`x` with its rows and columns in other orders: QR keeps the columns as they come, so they come sorted."""
    rows, columns = orders
    y = x.reshape(matrix_shape(x.shape))
    y = y if rows is None else y[rows]
    y = y if columns is None else y[:, columns]
    return y.reshape(x.shape)
