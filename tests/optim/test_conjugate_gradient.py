"""Conjugate gradients against what theory says of quadratics, and against SciPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxaccel.errors import UserError
from jaxaccel.optim.conjugate_gradient import conjugate_gradient, scale_by_conjugate_gradient

METHODS = ["polak-ribiere", "fletcher-reeves", "hestenes-stiefel"]


def minimized(loss, start, tx, steps):
    """(params, losses) after `steps`, in one program."""
    value_and_grad = optax.value_and_grad_from_state(loss)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params):
        def body(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(params, updates), state), value

        (params, _), values = jax.lax.scan(body, (params, tx.init(params)), length=steps)
        return params, values

    return run(start)


@pytest.mark.parametrize("method", METHODS)
def test_a_quadratic_takes_as_many_steps_as_it_has_dimensions(method):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    matrix = q @ np.diag([1.0, 2.0, 5.0, 10.0, 30.0, 100.0]) @ q.T
    target = rng.normal(size=6)

    def exact(updates, state, params=None):
        step = -jnp.vdot(updates, matrix @ (params - target)) / jnp.vdot(updates, matrix @ updates)
        return step * updates, state

    with jax.enable_x64(True):
        tx = optax.chain(
            scale_by_conjugate_gradient(method),
            optax.GradientTransformation(optax.init_empty_state, exact),
        )
        params = jnp.zeros(6)
        state = tx.init(params)
        distances = []
        for _ in range(6):
            updates, state = tx.update(matrix @ (params - target), state, params)
            params = params + updates
            distances.append(float(jnp.abs(params - target).max()))
    assert distances[-1] < 1e-9 < 1e-3 < distances[-2]


def rosenbrock(p):
    x, y = p["x"], p["y"]
    return (100 * (y - x**2) ** 2 + (1 - x) ** 2).sum()


@pytest.mark.parametrize("method", METHODS)
def test_rosenbrock_ends_where_scipy_ends(method):
    start = {"x": np.array([-1.2, 0.5]), "y": np.array([1.0, -0.5])}
    with jax.enable_x64(True):
        params, values = minimized(
            rosenbrock, jax.tree.map(jnp.asarray, start), conjugate_gradient(method=method), 60
        )
        value = float(rosenbrock(params))
    theirs = scipy.optimize.minimize(
        lambda p: rosenbrock({"x": p[:2], "y": p[2:]}), np.concatenate([start["x"], start["y"]]), method="CG"
    )
    np.testing.assert_allclose(params["x"], theirs.x[:2], atol=1e-4)
    assert value < 1e-20 < theirs.fun
    assert np.all(np.diff(np.asarray(values)) <= 1e-12)  # no step climbs


def test_it_restarts_where_it_would_climb():
    tx = scale_by_conjugate_gradient("fletcher-reeves")
    state = tx.init(jnp.zeros(3))
    direction, state = tx.update(jnp.array([1.0, 0.0, 0.0]), state)
    direction, state = tx.update(jnp.array([0.0, 2.0, 0.0]), state)
    np.testing.assert_array_equal(direction, [4.0, 2.0, 0.0])  # g + β u with β = 4
    direction, _ = tx.update(jnp.array([-8.0, 0.0, 16.0]), state)  # orthogonal to g', but u climbs
    np.testing.assert_array_equal(direction, [-8.0, 0.0, 16.0])


def test_it_restarts_where_gradients_are_not_orthogonal():
    tx = scale_by_conjugate_gradient("fletcher-reeves")
    for second, restarts in (([0.1, 1.0], False), ([0.3, 1.0], True)):
        _, state = tx.update(jnp.array([1.0, 0.0]), tx.init(jnp.zeros(2)))
        direction, _ = tx.update(jnp.array(second), state)
        assert np.array_equal(direction, np.float32(second)) == restarts


def test_unknown_method():
    with pytest.raises(UserError, match="polak-ribiere"):
        conjugate_gradient(method="newton")  # pyright: ignore[reportArgumentType]
