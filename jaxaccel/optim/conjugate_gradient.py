"""The nonlinear conjugate gradient method, for losses of whole data sets.

Nocedal & Wright 2006, Numerical Optimization, 5.2; Fletcher & Reeves 1964, doi:10.1093/comjnl/7.2.149; Polak & Ribière
1969; Hestenes & Stiefel 1952, doi:10.6028/jres.049.044.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.errors import UserError

PyTree = Any
Method = Literal["polak-ribiere", "fletcher-reeves", "hestenes-stiefel"]

# Along a direction whose slope is less than this share of the gradient's own, the loss hardly falls.
_DESCENT = 0.01
# Successive gradients of a quadratic are orthogonal; where they are not, what was learned of it is not so either.
_ORTHOGONAL = 0.2


class ConjugateGradientState(NamedTuple):
    """The gradient and the direction of the step before; both have their parameter's path as a suffix."""

    previous: PyTree
    """The gradient."""
    direction: PyTree
    """What was returned: the direction of ascent."""


def conjugate_gradient(
    learning_rate: optax.ScalarOrSchedule | None = None,
    method: Method = "polak-ribiere",
    linesearch: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Nonlinear conjugate gradient with a line search, called like `optax.lbfgs`.

        tx = conjugate_gradient()
        value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)

    Args:
      learning_rate: a factor on each direction before the line search; by default 1.
      method: `scale_by_conjugate_gradient` has it.
      linesearch: by default `optax.scale_by_zoom_linesearch`, which starts at the step before and asks for a tenth of
        the slope: conjugacy rests on line searches that are nearly exact (Nocedal & Wright, 3.1).

    Raises:
      UserError: there is no such `method`.
    """
    if linesearch is None:
        linesearch = optax.scale_by_zoom_linesearch(
            max_linesearch_steps=30, curv_rtol=0.1, initial_guess_strategy="keep"
        )
    return optax.chain(
        scale_by_conjugate_gradient(method),
        optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate),
        linesearch,
    )


def scale_by_conjugate_gradient(method: Method = "polak-ribiere") -> optax.GradientTransformation:
    """g + βu: the gradient g and a share of the direction u before it, whose line search has been done.

    With y the change of the gradient, β is max(g·y, 0) / g'·g' (polak-ribiere, g' the gradient before), g·g / g'·g'
    (fletcher-reeves) or max(-g·y / u·y, 0) (hestenes-stiefel). It restarts, which is to say β = 0, where
    |g·g'| > 0.2 g·g (Powell 1977, doi:10.1007/BF01593790), and where the new direction would hardly descend, its
    product with g being less than 0.01 g·g.

    Raises:
      UserError: there is no such `method`.
    """
    if method not in ("polak-ribiere", "fletcher-reeves", "hestenes-stiefel"):
        raise UserError(
            f"conjugate_gradient has no method {method!r}: polak-ribiere, fletcher-reeves or hestenes-stiefel"
        )

    def init(params: PyTree) -> ConjugateGradientState:
        return ConjugateGradientState(
            jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
        )

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, ConjugateGradientState]:
        del params
        grads = updates
        square, before = _dot(grads, grads), _dot(state.previous, state.previous)
        overlap = _dot(grads, state.previous)
        change = square - overlap
        if method == "fletcher-reeves":
            beta = _ratio(square, before)
        elif method == "polak-ribiere":
            beta = jnp.maximum(_ratio(change, before), 0)
        else:
            curvature = _dot(state.direction, state.previous) - _dot(state.direction, grads)
            beta = jnp.maximum(_ratio(change, curvature), 0)
        slope = square + beta * _dot(state.direction, grads)
        goes_on = (slope >= _DESCENT * square) & (jnp.abs(overlap) <= _ORTHOGONAL * square)
        beta = jnp.where(goes_on, beta, 0)
        direction = jax.tree.map(lambda g, u: g + beta.astype(g.dtype) * u, grads, state.direction)
        return direction, ConjugateGradientState(grads, direction)

    return optax.GradientTransformation(init, update)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    return jnp.asarray(optax.tree.vdot(a, b))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, or 0 where b is 0: before the first step, and at a minimum."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
