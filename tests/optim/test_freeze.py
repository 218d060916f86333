"""Parameters that stay: no state, no gradient, and a later start."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxaccel.errors import UserError
from jaxaccel.optim import Optimizer
from jaxaccel.optim.averaging import weights_to_evaluate
from jaxaccel.optim.freeze import freeze, stop_gradients, unfreeze_gradually


def problem():
    params = {"a": {"kernel": jnp.ones((3, 4))}, "b": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
    x = jax.random.normal(jax.random.key(0), (5, 3))
    return params, lambda p: jnp.sum(jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"] + p["b"]["bias"]) ** 2


@pytest.mark.parametrize(
    "tx", [optax.adamw(0.1), optax.sgd(0.1, momentum=0.9), optax.lion(0.1)], ids=["adamw", "momentum", "lion"]
)
def test_what_is_frozen_stays_and_has_no_state(tx):
    params, loss = problem()
    wrapped = freeze(tx, "a/**")
    state = wrapped.init(params)
    shapes = {x.shape for x in jax.tree.leaves(state)}
    assert (3, 4) not in shapes and (4, 2) in shapes
    alone, rest = tx.init(params["b"]), params["b"]
    moved = params
    for _ in range(3):
        updates, state = wrapped.update(jax.grad(loss)(moved), state, moved)
        expected, alone = tx.update(
            jax.grad(lambda b, p=moved: loss({"a": p["a"], "b": b}))(rest), alone, rest
        )
        moved, rest = optax.apply_updates(moved, updates), optax.apply_updates(rest, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved["b"], rest)
    np.testing.assert_array_equal(moved["a"]["kernel"], params["a"]["kernel"])


def followed(optimizer, loss, params, steps=4):
    """The parameters after a few steps, in which the optimizer is given all that the trainer gives it, and those that
    are evaluated."""
    tx = optimizer.build(optax.constant_schedule(optimizer.learning_rate), steps)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value_fn": loss, "obj_fn": loss, "grad_fn": lambda p, _=0: jax.grad(loss)(p)}
        updates, state = tx.update(grads, state, params, value=value, grad=grads, **extra)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, weights_to_evaluate(state, params)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adam", "sam": 0.05},
        {"name": "adam", "asam": 0.5},
        {"name": "sophia"},
        {"name": "lbfgs"},
        {"name": "conjugate_gradient"},
        {"name": "adam", "lookahead": 3},
        {"name": "schedule_free_adamw"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_optimizers_that_ask_for_more_see_what_moves_alone(options):
    params, loss = problem()
    optimizer = Optimizer(learning_rate=0.01, **options)
    found, shown = followed(dataclasses.replace(optimizer, freeze=("a/**",)), loss, params)
    alone, expected = followed(optimizer, lambda b: loss({"a": params["a"], "b": b}), params["b"])
    np.testing.assert_array_equal(found["a"]["kernel"], params["a"]["kernel"])
    assert all((found["b"][name] != x).any() for name, x in params["b"].items())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found["b"], alone)
    if expected is not None:
        np.testing.assert_array_equal(shown["a"]["kernel"], params["a"]["kernel"])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), shown["b"], expected)


def test_the_backward_pass_leaves_out_what_is_frozen():
    params, loss = problem()

    def products(where):
        f = lambda p: loss(stop_gradients(p, where) if where else p)  # noqa: E731
        return jax.jit(jax.grad(f)).lower(params).compile().as_text().count(" dot(")

    grads = jax.grad(lambda p: loss(stop_gradients(p, "a/**")))(params)
    assert not grads["a"]["kernel"].any() and grads["b"]["kernel"].any()
    assert products("a/**") < products(None)


def test_groups_start_one_after_the_other():
    params, loss = problem()
    tx = unfreeze_gradually(optax.adamw(0.1, weight_decay=0.1), {"a/**": 0.5, "b/bias": 0.2}, 10)
    state, moved = tx.init(params), params
    first: dict = {}
    for step in range(10):
        updates, state = tx.update(jax.grad(loss)(moved), state, moved)
        for name, leaf in (
            ("a", updates["a"]["kernel"]),
            ("bias", updates["b"]["bias"]),
            ("b", updates["b"]["kernel"]),
        ):
            if leaf.any():
                first.setdefault(name, step)
        moved = optax.apply_updates(moved, updates)
    assert first == {"b": 0, "bias": 2, "a": 5}


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adamw", "weight_decay": 0.1, "lookahead": 2},
        {"name": "sgd", "args": {"momentum": 0.9}, "sam": 0.1},
        {"name": "adamw", "weight_decay": 0.1, "sam": 0.1, "lookahead": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_starts_later_gathers_nothing_before(options):
    params, loss = problem()
    tx = Optimizer(learning_rate=0.05, unfreeze={"a/**": 0.8}, **options).build(lambda step: 0.05, 10)
    state, moved = tx.init(params), params
    for _ in range(6):
        grads = jax.grad(loss)(moved)
        updates, state = tx.update(grads, state, moved, grad_fn=jax.grad(loss))
        moved = optax.apply_updates(moved, updates)
    shown = weights_to_evaluate(state, moved) or moved
    np.testing.assert_array_equal(moved["a"]["kernel"], params["a"]["kernel"])
    np.testing.assert_array_equal(shown["a"]["kernel"], params["a"]["kernel"])
    assert (shown["b"]["kernel"] != params["b"]["kernel"]).all()
    if "args" in options:
        (momentum,) = (x for x in jax.tree.leaves(state) if x.shape == (3, 4))
        assert not momentum.any()


def test_layers_are_counted_among_those_that_are_frozen_too():
    params = {
        "blocks": [{"kernel": jnp.ones((2, 2))} for _ in range(3)],
        "head": {"kernel": jnp.ones((2, 2))},
    }
    optimizer = Optimizer("sgd", 1.0, layer_decay=0.5, freeze=("blocks/1/**", "head/**"))
    tx = optimizer.build(lambda step: 1.0)
    updates, _ = tx.update(params, tx.init(params), params)
    moved = [float(-x["kernel"][0, 0]) for x in [*updates["blocks"], updates["head"]]]
    assert moved == [0.125, 0.0, 0.5, 0.0]


def test_what_cannot_be_is_said_in_a_line():
    params, _ = problem()
    with pytest.raises(UserError, match="matches none"):
        freeze(optax.sgd(0.1), "c/**").init(params)
    with pytest.raises(UserError, match="nothing would be trained"):
        freeze(optax.sgd(0.1), "**").init(params)
    with pytest.raises(UserError, match=r"in \[0, 1\], got 2"):
        unfreeze_gradually(optax.sgd(0.1), {"a/**": 2.0}, 10)
