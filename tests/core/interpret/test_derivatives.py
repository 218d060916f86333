"""Functions with a derivative of their own: both of their rules are transformed, and nothing in them is silent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.core import sites

PARAMS = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).standard_normal((6, 8)), jnp.float32)


@jax.custom_vjp
def layer(params, x):
    """A product and, with no derivative, where its input is largest."""
    return x @ params["kernel"], jnp.argmax(x, -1)


layer.defvjp(
    lambda params, x: (layer(params, x), (params["kernel"], x)),
    lambda saved, ct: ({"kernel": saved[1].T @ ct[0]}, ct[0] @ saved[0].T),
)


def loss(params, x):
    return jnp.sum(layer(params, x)[0] ** 2)


TRANSFORMATIONS = {
    "bfloat16": ja.bfloat16,
    "fake_int8": ja.fake_int8,
    "int8_train": lambda f: ja.int8(f, train=True, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_rules_of_custom_vjp_know_their_parameters(name):
    t = TRANSFORMATIONS[name]
    rows = ja.explain(jax.grad(t(loss)), PARAMS, X).rows
    function, forward, *backward = rows
    # The forward rule stands in for the function, so its site goes by the same name.
    assert function["site"] == forward["site"] == "kernel"
    assert forward["lowering"] == function["lowering"] != "-"
    # The backward rule has residuals, not parameters: what needs no parameter happens there too, the rest is told.
    assert len(backward) == 2
    for row in backward:
        assert row["after"] == "bfloat16" if name == "bfloat16" else row["reason"]


def one_by_one(g):
    """As a model written for one batch is mapped over many."""
    return lambda params, x: jax.tree.map(lambda y: y[0], jax.vmap(g, (None, 0))(params, x[None]))


@pytest.mark.parametrize("wrap", [lambda g: g, jax.jit, one_by_one], ids=["plain", "jit", "vmap"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_gradients_are_those_of_the_rules(name, wrap):
    got = wrap(jax.grad(TRANSFORMATIONS[name](loss)))(PARAMS, X)["kernel"]
    want = wrap(jax.grad(loss))(PARAMS, X)["kernel"]
    np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())
    assert not np.array_equal(got, want)


def test_a_rule_that_asks_for_symbolic_zeros_gets_them():
    @jax.custom_vjp
    def pair(w, x):
        return x @ w, x @ (2 * w)

    def forward(w, x):
        return pair(w.value, x.value), (w.value, x.value)

    def backward(saved, ct):
        w, x = saved
        assert isinstance(ct[1], jax.custom_derivatives.SymbolicZero)
        return x.T @ ct[0], ct[0] @ w.T

    pair.defvjp(forward, backward, symbolic_zeros=True)
    w = PARAMS["kernel"]
    got = jax.grad(ja.bfloat16(lambda w, x: pair(w, x)[0].sum()))(w, X)
    np.testing.assert_allclose(got, np.tile(X.sum(0)[:, None], 4), rtol=0.02, atol=0.05)


def test_ranges_found_in_a_function_serve_its_forward_rule():
    calibration = ja.calibrate(loss, PARAMS, [X])
    f = ja.fake_int8(loss, calibration=calibration)
    with sites.record_runs() as runs:
        jax.grad(f)(PARAMS, X)
    names = {r.name for r in runs[0].records if r.path}
    assert names == {"kernel"} == set(calibration.ranges)
