import jax.numpy as jnp
import numpy as np
import pytest

from jaxaccel.models.layers.rotary import rotate


def numpy_rotate(x, positions, base=10_000.0):
    """By complex numbers, in float64."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    turned = pairs * np.exp(1j * positions[:, None, None] * base ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_it_equals_numpy():
    x = np.random.default_rng(0).standard_normal((2, 9, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(rotate(jnp.asarray(x)), numpy_rotate(x, np.arange(9)), atol=1e-5)
    at = np.array([0, 3, 4, 100, 2, 511, 1, 1, 1])
    np.testing.assert_allclose(rotate(jnp.asarray(x), jnp.asarray(at)), numpy_rotate(x, at), atol=1e-4)
    each = rotate(jnp.asarray(x), jnp.stack([jnp.asarray(at), jnp.arange(9)]))
    np.testing.assert_allclose(each[0], numpy_rotate(x, at)[0], atol=1e-4)
    np.testing.assert_allclose(each[1], numpy_rotate(x, np.arange(9))[1], atol=1e-5)
    assert rotate(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    query, key = (
        jnp.asarray(np.tile(rng.standard_normal((1, 1, 1, 8)), (1, 20, 1, 1)), jnp.float32) for _ in "qk"
    )
    products = np.einsum("btnh,bsnh->ts", rotate(query), rotate(key))
    for distance in (0, 1, 5):
        np.testing.assert_allclose(np.diagonal(products, distance), products[0, distance], atol=1e-4)
    assert np.ptp(products[0]) > 0.1


def test_an_odd_number_of_features():
    with pytest.raises(ValueError, match="heads of 5 features have no pairs"):
        rotate(jnp.zeros((1, 2, 1, 5)))
