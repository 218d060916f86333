"""Lookahead and sharpness-aware minimization against Optax's and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxaccel.errors import UserError
from jaxaccel.optim.lookahead import lookahead
from jaxaccel.optim.sharpness import sharpness_aware, worst_offset

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[3.0]])}


def loss(p):
    return (p["a"] ** 4).sum() + (p["a"].sum() - p["b"]).sum() ** 2


def close(a, b, **options):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-7, **options}), a, b
    )


def test_lookahead_is_that_of_optax_on_ordinary_parameters():
    ours, theirs = lookahead(optax.adam(0.05), 3, 0.4), optax.lookahead(optax.adam(0.05), 3, 0.4)
    params, pair = PARAMS, optax.LookaheadParams.init_synced(PARAMS)
    state, pair_state = ours.init(params), theirs.init(pair)

    @jit
    def step(params, state, pair, pair_state):
        updates, state = ours.update(jax.grad(loss)(params), state, params)
        pair_updates, pair_state = theirs.update(jax.grad(loss)(pair.fast), pair_state, pair)
        return (
            optax.apply_updates(params, updates),
            state,
            optax.apply_updates(pair, pair_updates),
            pair_state,
        )

    for i in range(1, 8):
        params, state, pair, pair_state = step(params, state, pair, pair_state)
        close(params, pair.fast)
        close(state.slow, pair.slow)
        assert (i % 3 == 0) == np.allclose(params["a"], state.slow["a"], rtol=1e-6)


def test_lookahead_with_a_schedule_of_the_decay():
    """Slow weights as an exponential average whose decay grows, in NumPy."""

    def step(count):
        return 1 - 0.9 * (count / 6) ** 3

    tx = lookahead(optax.sgd(0.1), 2, step)
    params = {"w": jnp.float32(1.0)}
    state = tx.init(params)
    fast = slow = 1.0
    update = jit(tx.update)
    for i in range(1, 7):
        updates, state = update({"w": jnp.float32(1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        fast -= 0.1
        if i % 2 == 0:
            fast = slow = slow + step(i) * (fast - slow)
        assert float(params["w"]) == pytest.approx(fast, rel=1e-6)


def test_sam_is_that_of_optax():
    ours = sharpness_aware(optax.adam(0.05), rho=0.2)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
    theirs = optax.contrib.sam(optax.adam(0.05), adversary, opaque_mode=True)
    grad = jax.grad(loss)

    @jit
    def run(a, b):
        state, other = ours.init(a), theirs.init(b)
        for _ in range(3):
            updates, state = ours.update(grad(a), state, a, grad_fn=grad)
            a = optax.apply_updates(a, updates)
            updates, other = theirs.update(grad(b), other, b, grad_fn=lambda p, _: grad(p))
            b = optax.apply_updates(b, updates)
        return a, b

    close(*run(PARAMS, PARAMS))


def test_the_offset_is_the_worst_in_its_ball():
    grads = jax.grad(loss)(PARAMS)
    rng = np.random.default_rng(0)
    flat, g, w = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (
        worst_offset(grads, PARAMS, 0.3, adaptive=True), grads, PARAMS))  # fmt: skip
    axes = np.abs(w) + 0.01
    assert np.linalg.norm(flat / axes) == pytest.approx(0.3, rel=1e-5)
    others = rng.normal(size=(10000, 4))
    others *= 0.3 * axes / np.linalg.norm(others, axis=1, keepdims=True)
    assert 0.95 * flat @ g < (others @ g).max() <= flat @ g


def test_asam_does_not_depend_on_the_scale_of_weights():
    """The same function with weights 100 times as large and an input as much smaller: the same relative offset."""
    large = jax.tree.map(lambda p: 100 * p + 0.99 * jnp.sign(p), PARAMS)  # |w| + 0.01, 100 times as large
    grads = jax.grad(loss)(PARAMS)
    offset = worst_offset(grads, PARAMS, 0.3, adaptive=True)
    scaled = worst_offset(jax.tree.map(lambda g: g / 100, grads), large, 0.3, adaptive=True)
    close(scaled, jax.tree.map(lambda x: 100 * x, offset))


def test_no_gradient_is_no_offset():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    close(worst_offset(zeros, PARAMS, 0.1), zeros, rtol=0, atol=0)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: lookahead(optax.sgd(1.0), period=0), "period=0 must be at least 1"),
        (lambda: lookahead(optax.sgd(1.0), step=1.5), "step=1.5 must be in"),
        (lambda: lookahead(optax.sgd(1.0)).update(PARAMS, optax.EmptyState()), "call update"),
        (lambda: sharpness_aware(optax.sgd(1.0), rho=0.0), "rho=0.0 must be positive"),
        (lambda: sharpness_aware(optax.sgd(1.0)).update(PARAMS, optax.EmptyState(), PARAMS), "grad_fn="),
    ],
)
def test_mistakes(make, says):
    with pytest.raises(UserError, match=says):
        make()
