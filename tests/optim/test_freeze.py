"""Parameters that stay: no state, no gradient, and a later start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxaccel.errors import UserError
from jaxaccel.optim.freeze import freezing, unfreezing, without_gradient


def problem():
    params = {"a": {"kernel": jnp.ones((3, 4))}, "b": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
    x = jax.random.normal(jax.random.key(0), (5, 3))
    return params, lambda p: jnp.sum(jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"] + p["b"]["bias"]) ** 2


@pytest.mark.parametrize(
    "tx", [optax.adamw(0.1), optax.sgd(0.1, momentum=0.9), optax.lion(0.1)], ids=["adamw", "momentum", "lion"]
)
def test_what_is_frozen_stays_and_has_no_state(tx):
    params, loss = problem()
    wrapped = freezing(tx, "a/**")
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


def test_the_backward_pass_leaves_out_what_is_frozen():
    params, loss = problem()

    def products(where):
        f = lambda p: loss(without_gradient(p, where) if where else p)  # noqa: E731
        return jax.jit(jax.grad(f)).lower(params).compile().as_text().count(" dot(")

    grads = jax.grad(lambda p: loss(without_gradient(p, "a/**")))(params)
    assert not grads["a"]["kernel"].any() and grads["b"]["kernel"].any()
    assert products("a/**") < products(None)


def test_groups_start_one_after_the_other():
    params, loss = problem()
    tx = unfreezing(optax.adamw(0.1, weight_decay=0.1), {"a/**": 0.5, "b/bias": 0.2}, 10)
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


def test_what_cannot_be_is_said_in_a_line():
    params, _ = problem()
    with pytest.raises(UserError, match="matches none"):
        freezing(optax.sgd(0.1), "c/**").init(params)
    with pytest.raises(UserError, match="nothing would be trained"):
        freezing(optax.sgd(0.1), "**").init(params)
    with pytest.raises(UserError, match=r"in \[0, 1\], got 2"):
        unfreezing(optax.sgd(0.1), {"a/**": 2.0}, 10)
