import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer
from jaxaccel.optim.averaging import Averaging, _probed, make_reestimator
from jaxaccel.optim.float32_updates import in_float32
from jaxaccel.optim.lookahead import lookahead
from jaxaccel.optim.sharpness import sharpness_aware

WEIGHTS = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)


def averages(averaging, dtype=jnp.float32):
    """The average after each step, from one jitted scan."""

    @jax.jit
    def run(weights):
        def body(average, item):
            average = averaging.update(average, {"w": item[1]}, item[0])
            return average, average["w"]

        return jax.lax.scan(body, averaging.init({"w": weights[0]}), (jnp.arange(1, 21), weights[1:]))[1]

    return np.asarray(run(jnp.asarray(WEIGHTS, dtype)), np.float64)


def test_equal_weights():
    found = averages(Averaging(at=range(5, 21, 3)))
    for step in range(1, 21):
        taken = [WEIGHTS[step]] if step < 5 else WEIGHTS[5 : step + 1 : 3]
        np.testing.assert_allclose(found[step - 1], np.mean(taken, 0), rtol=1e-5, atol=1e-6)


def test_equal_weights_at_uneven_steps():
    found = averages(Averaging(at=(2, 9, 11, 20)))
    np.testing.assert_allclose(found[0], WEIGHTS[1], rtol=1e-6)
    np.testing.assert_allclose(found[9], WEIGHTS[[2, 9]].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[19], WEIGHTS[[2, 9, 11, 20]].mean(0), rtol=1e-5, atol=1e-6)


def test_exponential():
    found = averages(Averaging(decay=0.8))
    expected = WEIGHTS[0]
    for step in range(1, 21):
        expected = 0.8 * expected + 0.2 * WEIGHTS[step]
        np.testing.assert_allclose(found[step - 1], expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_weights_are_averaged_in_float32():
    rounded = np.asarray(jnp.asarray(WEIGHTS, jnp.bfloat16), np.float64)
    found = averages(Averaging(at=range(21)), jnp.bfloat16)[-1]
    np.testing.assert_allclose(found, rounded.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_are_widened_before_they_are_multiplied(dtype):
    """0.1 and 0.9 of weights in bfloat16 were rounded themselves: 0.3% off after 20 steps."""
    rounded = np.asarray(jnp.asarray(WEIGHTS, dtype), np.float64)
    expected = rounded[0]
    for weights in rounded[1:]:
        expected = 0.9 * expected + 0.1 * weights
    np.testing.assert_allclose(averages(Averaging(decay=0.9), dtype)[-1], expected, rtol=1e-5)


def test_lookahead_keeps_slow_weights_in_float32():
    tx = lookahead(optax.sgd(0.1), period=2)
    params = {"w": jnp.asarray(WEIGHTS[0], jnp.bfloat16)}
    state, slow = tx.init(params), np.float64(params["w"])
    for step, grad in enumerate(jnp.asarray(WEIGHTS[1:7], jnp.bfloat16), start=1):
        updates, state = tx.update({"w": grad}, state, params)
        fast = np.float64(params["w"]) + np.float64(-0.1 * grad)
        params = optax.apply_updates(params, updates)
        if step % 2 == 0:
            slow = slow + 0.5 * (fast - slow)
            np.testing.assert_allclose(np.float64(params["w"]), slow, rtol=2**-7, atol=2**-7)
    np.testing.assert_allclose(state.slow["w"], slow, rtol=1e-5)


def test_an_optimizer_computes_in_float32_whatever_the_weights():
    """Adam's second moment in bfloat16 stands still: what a step adds to it is less than its last bit."""
    tx = Optimizer(name="adam", args={"b2": 0.999}).build(optax.constant_schedule(1e-3))
    params, grads = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.asarray([1.0, 0.5, 2.0], jnp.bfloat16)}
    state, nu = tx.init(params), np.zeros(3)
    for _ in range(50):
        updates, state = tx.update(grads, state, params)
        nu = 0.999 * nu + 0.001 * np.float64(grads["w"]) ** 2
    assert (
        updates["w"].dtype == jnp.float32 and optax.apply_updates(params, updates)["w"].dtype == jnp.bfloat16
    )
    np.testing.assert_allclose(optax.tree.get(state, "nu")["w"], nu, rtol=1e-5)


@pytest.mark.parametrize("name", ["lbfgs", "sgd"])
def test_functions_of_the_weights_get_them_in_their_own_dtype(name):
    tx = in_float32(optax.lbfgs() if name == "lbfgs" else sharpness_aware(optax.sgd(0.1), 0.05))
    params = {"w": jnp.asarray([1.0, -2.0], jnp.bfloat16)}

    def loss(p):
        assert p["w"].dtype == jnp.bfloat16
        return jnp.sum(p["w"].astype(jnp.float32) ** 2)

    value, grad = jax.value_and_grad(loss)(params)
    more = (
        {"value": value, "grad": grad, "value_fn": loss} if name == "lbfgs" else {"grad_fn": jax.grad(loss)}
    )
    updates, _ = tx.update(grad, tx.init(params), params, **more)
    assert float(loss(optax.apply_updates(params, updates))) < float(value)


class Net(nnx.Module):
    """Two BatchNorms of different momentum, a counter, an integer, and a number that nothing changes."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, momentum=0.99, rngs=rngs)
        self.second = nnx.Linear(4, 5, rngs=rngs)
        self.norm2 = nnx.BatchNorm(5, momentum=0.5, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.float32(7))
        self.steps = nnx.BatchStat(jnp.int32(3))
        self.fixed = nnx.BatchStat(jnp.float32(2.5))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        self.steps[...] = self.steps[...] + 1
        x = nnx.relu(self.norm1(self.first(x)))
        return self.norm2(self.second(x))


@pytest.fixture(scope="module")
def net():
    model = as_model(Net, {}, (jax.ShapeDtypeStruct((16, 3), jnp.float32),))
    params, state = jax.jit(model.init)(jax.random.key(0))
    state["norm1"]["mean"] += 100.0  # of what came before nothing may remain

    def apply(params, state, batch):
        return model.apply(params, state, batch, key=jax.random.key(0), train=True)[1]

    batches = [np.float32(b) for b in np.random.default_rng(1).normal(2, 3, size=(4, 16, 3))]
    return apply, params, state, batches


def test_statistics_are_the_mean_of_the_batches(net):
    apply, params, state, batches = net
    found = make_reestimator(apply)(params, state, batches)
    p = jax.tree.map(np.float64, params)
    means, variances = ([], []), ([], [])
    for x in map(np.float64, batches):
        x = x @ p["first"]["kernel"] + p["first"]["bias"]
        means[0].append(x.mean(0)), variances[0].append(x.var(0))
        x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
        x = x @ p["second"]["kernel"] + p["second"]["bias"]
        means[1].append(x.mean(0)), variances[1].append(x.var(0))
    for i, norm in enumerate(("norm1", "norm2")):
        np.testing.assert_allclose(found[norm]["mean"], np.mean(means[i], 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[norm]["var"], np.mean(variances[i], 0), rtol=1e-4)
    assert (float(found["calls"]), int(found["steps"]), float(found["fixed"])) == (7.0, 3, 2.5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_the_network_runs_once_a_batch(net):
    apply, params, state, batches = net
    once = jax.jit(apply).lower(params, state, batches[0]).compile().as_text()
    runs = (True,) * len(jax.tree.leaves(state))
    probed = jax.jit(lambda *a: _probed(apply, runs, *a)).lower(params, state, batches[0]).compile().as_text()
    assert once.count(" dot(") == probed.count(" dot(") > 0


def test_what_is_no_statistic_stays_and_is_used_as_it_is():
    """A fixed kernel is state of floats as well."""

    def apply(scale, state, x):
        seen = (x * scale * state["kernel"]).mean()
        return {**state, "mean": 0.9 * state["mean"] + 0.1 * seen, "count": state["count"] + 1}

    state = {"kernel": jnp.float32(3.0), "mean": jnp.float32(7.0), "count": jnp.int32(4)}
    found = make_reestimator(apply)(jnp.float32(2.0), state, [jnp.ones(4), 3 * jnp.ones(4)])
    assert float(found["kernel"]) == 3.0 and int(found["count"]) == 4
    np.testing.assert_allclose(found["mean"], 2.0 * 3.0 * (1 + 3) / 2, rtol=1e-4)


def test_mistakes(net):
    for wrong in ({}, {"decay": 1.0}, {"at": (3, 3)}, {"decay": 0.5, "at": (1, 2)}):
        with pytest.raises(UserError, match="either a decay"):
            Averaging(**wrong)
    with pytest.raises(UserError, match="at least one batch"):
        make_reestimator(net[0])(*net[1:3], [])
