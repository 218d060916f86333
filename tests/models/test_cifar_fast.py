import functools

import jax
import jax.numpy as jnp
import numpy as np
from families import fast_jit, shapes_of

from jaxaccel.models.adapter import as_model, takes_argument
from jaxaccel.models.layers.counts import count_multiply_adds, count_parameters
from jaxaccel.models.vision.cifar_fast import CifarFast, cifar_fast, partial_identity, whitening


def images(count=64, size=12, channels=3):
    """Smooth noise whose neighboring pixels and channels have to do with each other."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, size + 2, size + 2, channels))
    mixed = noise @ rng.standard_normal((channels, channels))
    return (mixed[:, 2:, 2:] + mixed[:, 1:-1, 2:] + mixed[:, 2:, 1:-1]).astype(np.float32)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    x = images()
    kernel = whitening(x, epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    flat = np.asarray(y[..., :12], np.float64).reshape(-1, 12)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(12), atol=1e-3)


def test_the_first_channels_start_as_the_input():
    kernel = fast_jit(partial_identity, static_argnums=1)(jax.random.key(0, impl="rbg"), (3, 3, 4, 6))
    x = jnp.asarray(images(2, channels=4))
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(y[..., :4], x, atol=1e-6)
    assert 0 < float(jnp.abs(kernel[..., 4:]).max()) <= 1 / 6  # 1 / sqrt(9 * 4)


def test_size():
    model = shapes_of(lambda rngs: cifar_fast(rngs=rngs))
    assert count_parameters(model) == 1_971_352
    # Convolutions do not change the side, but for the whitening's; poolings halve it and drop an odd rest.
    convs = [(31, 2, 3, 24), (31, 3, 24, 64), (15, 3, 64, 64), (15, 3, 64, 256), (7, 3, 256, 256)]
    convs += [(7, 3, 256, 256), (3, 3, 256, 256)]
    assert count_multiply_adds(model, (32, 32, 3)) == sum(s**2 * k**2 * i * o for s, k, i, o in convs) + 2560


def test_the_whitening_comes_from_the_data_and_is_not_trained():
    sample = images(8, 32)
    shape = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def factory(*, classes, sample, rngs):
        return CifarFast((4, 6, 8), classes=classes, sample=sample, rngs=rngs)

    assert takes_argument(factory, "sample") and not takes_argument(lambda *, rngs: None, "sample")
    model = as_model(factory, {"classes": 5, "sample": sample}, (shape,))
    key = jax.random.key(0, impl="rbg")
    params, state = fast_jit(model.init)(key)
    np.testing.assert_allclose(state["whiten"]["kernel"], whitening(sample), atol=1e-6)
    assert set(params["whiten"]) == {"bias"}
    logits, after = fast_jit(functools.partial(model.apply, train=True))(params, state, sample, key=key)
    assert logits.shape == (8, 5)
    np.testing.assert_array_equal(after["whiten"]["kernel"], state["whiten"]["kernel"])
