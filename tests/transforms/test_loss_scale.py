"""Loss scales beyond what float16 holds, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("scale", [2.0**16, 2.0**24, 100_000.0])
def test_gradients_are_divided_by_the_scale_itself(dtype, scale):
    scaling = ja.transforms.LossScale(initial=scale)
    grads = jnp.asarray([65.5, -3000.0, 0.0], dtype)
    found, finite = scaling.unscale({"w": grads}, scaling.init())
    want = jnp.asarray(np.asarray(grads, np.float64) / scale, dtype)
    assert found["w"].dtype == dtype and bool(finite)
    np.testing.assert_array_equal(found["w"], want)


def test_the_example_of_the_documentation():
    scaling = ja.transforms.LossScale(initial=2.0**16)
    grads, finite = scaling.unscale(jnp.asarray([65.5], jnp.float16), scaling.init())
    np.testing.assert_allclose(np.float64(grads), [65.5 / 2**16], rtol=1e-3)
    assert bool(finite)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_loss_is_multiplied_by_the_scale_itself(dtype):
    scaling = ja.transforms.LossScale(initial=100_000.0)
    loss = jnp.asarray(2.5, dtype)
    assert float(scaling.scale(loss, scaling.init())) == 250_000.0


def test_an_overflow_is_seen_where_it_is():
    scaling = ja.transforms.LossScale(initial=2.0**16)
    state = scaling.init()
    _, finite = scaling.unscale({"a": jnp.ones(2), "b": jnp.asarray([jnp.inf], jnp.float16)}, state)
    assert not bool(finite) and float(scaling.update(state, finite).scale) == 2.0**15
    # 1 / 0.25 is more than float16 holds of 30,000.
    small = ja.transforms.LossScale.static(0.25)
    assert not bool(small.unscale(jnp.asarray([30_000], jnp.float16), small.init())[1])


def test_a_loss_in_float16_whose_gradient_overflows_is_told():
    """The cotangent 2**16 of the loss is infinite in float16: not finite, and not taken for 0."""
    scaling = ja.transforms.LossScale(initial=2.0**16)
    state = scaling.init()
    grad = jax.grad(lambda w: scaling.scale(w.astype(jnp.float16) * jnp.float16(0.01), state))(
        jnp.float32(1e-6)
    )
    assert not bool(scaling.unscale(grad, state)[1])
