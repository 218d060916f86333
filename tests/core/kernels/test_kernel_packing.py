"""Weights that stay the same are packed once, and no change of them is missed, at the same address either."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core import kernels
from tests.core.kernels import reference
from tests.core.kernels.reference import LAYOUTS, needs_kernels, read_params


@needs_kernels
def test_a_change_of_one_weight_is_seen():
    rng = np.random.default_rng(0)
    shape = {"batch": 1, "channels": 64, "features": 64, "groups": 1, "window": (3, 3)}
    lhs, rhs = reference.make_operands(rng, (4, 4), LAYOUTS[2][0], **shape)
    numbers = {"padding": "SAME", "dimension_numbers": LAYOUTS[2][0]}
    params = read_params(lhs, rhs, window_strides=(1, 1), **numbers)
    f = jax.jit(lambda a, b: kernels.convolve(params, a, b))
    change = jax.jit(lambda w, k: w.reshape(-1).at[k].add(1.0).reshape(w.shape), donate_argnums=0)
    weights, addresses = jnp.array(rhs), set()
    for k in rng.integers(0, rhs.size, 12):
        for _ in range(4):
            np.testing.assert_allclose(f(lhs, weights), reference.convolve(params, lhs, rhs), atol=1e-4)
        addresses.add(weights.unsafe_buffer_pointer())
        weights = change(weights, k)
        rhs.reshape(-1)[k] += 1
    assert len(addresses) < 12, "no address was used again: this test shows nothing"


@needs_kernels
def test_many_weights_of_one_shape():
    """As in a network whose layers are alike, called again and again."""
    rng = np.random.default_rng(0)
    lhs = rng.integers(-9, 10, (2, 5, 5, 16)).astype(np.int8)
    weights = [jnp.asarray(rng.integers(-9, 10, (3, 3, 16, 16)), jnp.int8) for _ in range(6)]
    numbers = {"padding": "SAME", "dimension_numbers": LAYOUTS[2][0]}
    params = read_params(lhs, weights[0], window_strides=(1, 1), **numbers)
    f = jax.jit(lambda a, all: [kernels.convolve_integers(params, a, w) for w in all])
    expected = [reference.convolve(params, lhs, np.asarray(w)) for w in weights]
    for order in (slice(None), slice(None), slice(None, None, -1), slice(None)):
        for got, e in zip(f(lhs, weights[order]), expected[order], strict=True):
            np.testing.assert_array_equal(got, e)
