"""Ranges that follow training: their averages, and how they begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja


def follow(values, decay=0.9):
    running = ja.transforms.RunningRanges(decay=decay)
    state = running.init({"w": jnp.float32(values[0])})
    for value in values[1:]:
        state = running.update(state, {"w": jnp.float32(value)})
    return float(state.ranges["w"])


def test_they_are_exponential_averages():
    np.testing.assert_allclose(follow([2.0, 4.0, 1.0]), 0.9 * (0.9 * 2 + 0.1 * 4) + 0.1 * 1, rtol=1e-6)
    assert follow([2.0, 4.0], decay=0.5) == 3.0


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_a_batch_that_is_not_finite_is_left_out_wherever_it_stands(broken):
    assert follow([broken, 3.0]) == 3.0
    assert follow([broken, broken, 3.0, 4.0]) == pytest.approx(0.9 * 3 + 0.1 * 4)
    assert follow([3.0, broken, 4.0]) == pytest.approx(0.9 * 3 + 0.1 * 4)
    assert follow([broken]) == 0 and follow([2.0, broken]) == 2.0


def test_a_layer_that_was_still_silent_starts_with_its_first_values():
    assert follow([0.0, 0.0, 5.0]) == 5.0


def test_training_goes_on_from_a_first_batch_that_overflows():
    def f(params, x):
        return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": {"kernel": jax.random.normal(keys[0], (8, 8))},
        "b": {"kernel": jax.random.normal(keys[1], (8, 4))},
    }
    x = jax.random.normal(keys[2], (16, 8))
    running = ja.transforms.RunningRanges(decay=0.5)
    _, seen = ja.fake_int8(f, observe=True)(params, x * jnp.inf)
    state = running.init(seen)
    for _ in range(3):
        y, seen = ja.fake_int8(f, calibration=state, observe=True)(params, x)
        state = running.update(state, seen)
    np.testing.assert_allclose(y, f(params, x), atol=0.05 * float(jnp.abs(y).max()))
    for name, value in ja.calibrate(f, params, [x]).ranges.items():
        np.testing.assert_allclose(state.ranges[name], value, rtol=0.02)
