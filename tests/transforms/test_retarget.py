"""`ja.retarget`: the same results and gradients, other operations, on the CPU alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.transforms.lowering import autotune
from jaxaccel.transforms.lowering.choose import choose, list_forms

NUMBERS = ("NHWC", "HWIO", "NHWC")
on_cpu = functools.partial(ja.retarget, backend="cpu")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def pool(x, window=2, strides=2, padding="VALID"):
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, strides, strides, 1), padding
    )


def network(params, x):
    """Convolutions of many and few channels, one of them depthwise, and poolings that do and do not overlap."""
    conv = functools.partial(jax.lax.conv_general_dilated, padding="SAME", dimension_numbers=NUMBERS)
    x = pool(jax.nn.relu(conv(x, params["stem"], (1, 1))))
    x = jax.nn.relu(conv(x, params["depthwise"], (1, 1), feature_group_count=8))
    x = pool(jax.nn.relu(conv(x, params["wide"], (2, 2))), 3, 2, "SAME")
    return x.mean((1, 2)) @ params["head"]


PARAMS = {
    "stem": normal(3, 3, 3, 8),
    "depthwise": normal(3, 3, 1, 8, seed=1),
    "wide": normal(3, 3, 8, 32, seed=2),
    "head": normal(32, 4, seed=3),
}
X = normal(4, 16, 16, 3, seed=4)


def loss(params, x):
    return jnp.sum(network(params, x) ** 2)


def assert_near(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def primitives(f, *args):
    return jax.jit(f).lower(*args).as_text()


WRAPS = {
    "values": lambda t: t(network),
    "gradient of it": lambda t: jax.grad(t(loss), argnums=(0, 1)),
    "of a gradient": lambda t: t(jax.grad(loss, argnums=(0, 1))),
    "vmap of it": lambda t: lambda p, x: jax.vmap(t(network), (None, 0))(p, x[:, None]),
    "jvp of it": lambda t: lambda p, x: jax.jvp(t(network), (p, x), (p, x))[1],
    "in scan": lambda t: lambda p, x: jax.lax.scan(lambda c, _: (c, t(network)(p, x)), 0, None, 2)[1],
    "of remat": lambda t: t(jax.grad(jax.checkpoint(loss))),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_results_and_gradients_are_the_same(wrap):
    make = WRAPS[wrap]
    assert_near(jax.jit(make(on_cpu))(PARAMS, X), jax.jit(make(lambda f: f))(PARAMS, X))


def test_the_gradient_of_a_pooling_is_no_scatter_on_the_cpu():
    plain, better = primitives(jax.grad(loss), PARAMS, X), primitives(on_cpu(jax.grad(loss)), PARAMS, X)
    assert "select_and_scatter" in plain and "select_and_scatter" not in better


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_accelerators_get_the_program_as_it_was(backend):
    step = ja.retarget(jax.grad(loss), backend=backend)
    assert (
        jax.make_jaxpr(step)(PARAMS, X).pretty_print()
        == jax.make_jaxpr(jax.grad(loss))(PARAMS, X).pretty_print()
    )
    rows = ja.explain(step, PARAMS, X).rows
    assert rows and all(row["lowering"] == "-" and backend in row["reason"] for row in rows)


@pytest.mark.parametrize("backend, inside", [("cpu", 1), ("gpu", 1), ("tpu", 2)])
def test_products_of_inputs_leave_a_loop_but_for_tpus(backend, inside):
    """A recurrent network's step multiplies its input and what it carries; the input is known before."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"of": jax.random.normal(keys[0], (8, 16)), "carry": jax.random.normal(keys[1], (16, 16)) / 4}
    x = jax.random.normal(keys[2], (5, 4, 8))

    def recurrent(params, x):
        def step(h, x):
            h = jnp.tanh(x @ params["of"] + h @ params["carry"])
            return h, h

        return jax.lax.scan(step, jnp.zeros((4, 16)), x)

    better = ja.retarget(recurrent, backend=backend)
    (loop,) = [e for e in jax.make_jaxpr(better)(params, x).eqns if e.primitive.name == "scan"]
    assert str(loop.params["jaxpr"]).count("dot_general") == inside
    for got, want in zip(better(params, x), recurrent(params, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_explain_says_what_was_chosen_and_why():
    rows = ja.explain(on_cpu(jax.grad(loss)), PARAMS, X).rows
    changed = [row for row in rows if row["lowering"] != "-"]
    assert {"select_and_scatter_add"} <= {row["operation"] for row in changed}
    assert all(row["reason"] for row in rows)


def test_narrow_convolutions_are_left_alone():
    rows = ja.explain(on_cpu(ja.bfloat16(network, lowering="bfloat16")), PARAMS, X).rows
    convolutions = [
        r for r in rows if r["operation"] == "conv_general_dilated" and r["transformation"] == "retarget"
    ]
    assert len(convolutions) == 3 and all(r["reason"] == "is bfloat16 already" for r in convolutions)


def test_a_training_step_of_a_real_network():
    model = models.resnet20(rngs=nnx.Rngs(0), classes=10)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tx = optax.sgd(0.1, momentum=0.9)
    x, labels = normal(4, 32, 32, 3), jnp.arange(4)

    def step(params, opt_state):
        def loss(params):
            logits = nnx.merge(graph, params, rest, copy=True)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    args = params, tx.init(params)
    options = {"xla_backend_optimization_level": 0}
    got = jax.jit(on_cpu(step), compiler_options=options)(*args)
    assert_near(got[0], jax.jit(step, compiler_options=options)(*args)[0])


def test_tuning_times_each_site_once_and_keeps_the_verdict(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXACCEL_CACHE", str(tmp_path))
    autotune._load.cache_clear()
    timed = []
    monkeypatch.setattr(
        autotune, "_time", lambda contenders, shapes, device: timed.append(list(contenders)) or "blocks"
    )

    def f(x):
        return pool(x) + pool(x)

    def run():
        return jax.jit(on_cpu(f, tune=True, argnums=()))(X)

    assert_near(run(), f(X))
    assert timed == [["xla", "blocks", "taps"]]
    (file,) = tmp_path.glob("lowerings-*.json")
    assert list(json.loads(file.read_text()).values()) == ["blocks"]
    autotune._load.cache_clear()  # another process
    run()
    assert len(timed) == 1
    file.write_text("{ damaged")
    autotune._load.cache_clear()
    assert_near(run(), f(X))
    assert len(timed) == 2
    autotune._load.cache_clear()


def test_tuning_really_times(monkeypatch):
    monkeypatch.setenv("JAXACCEL_CACHE", "0")
    autotune._load.cache_clear()
    x = normal(4, 8, 8, 4)
    g = jax.jit(ja.retarget(jax.grad(lambda x: pool(x).sum()), tune=True, backend="cpu"))
    assert_near(g(x), jax.grad(lambda x: pool(x).sum())(x))
    autotune._load.cache_clear()


def test_the_rules_choose_among_the_forms_there_are():
    x = jax.ShapeDtypeStruct((8, 28, 28, 32), jnp.float32)
    eqn = jax.make_jaxpr(pool)(x).eqns[-1]
    form, reason = choose(eqn.primitive.name, eqn.params, [x])
    assert form in list_forms(eqn.primitive.name, eqn.params, [x]) and reason
