import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SMALL, called, fast_jit, filled_small, paths, shapes_of, small
from flax import nnx

from jaxaccel.models.layers.patches import patches

WITHOUT_BATCH_NORM = ("convnext", "mixer", "vit")
# Softmax does not see what is added to all its inputs, BatchNorm, behind a 1x1 convolution, what is added to all
# pixels of a channel, LayerNorm what is added to all channels: these biases have no gradient in exact arithmetic.
UNSEEN = ("attention/key/bias", "project/norm/bias", "tokens/down/bias")
# Max pooling leaves no pixel clipped by relu, and 1x1 convolutions with BatchNorm are all that follows.
UNSEEN_BY = {"resnet_bottleneck": ("stem/norm/bias",)}


@functools.cache
def ran(name):
    """What training and then inference make of a model: its loss, gradients, outputs and statistics."""
    model, x = filled_small(name)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        module = nnx.merge(graph, params, rest, copy=True)
        y = module(x)
        return (y**2).mean(), (y, nnx.state(module, nnx.BatchStat))

    @fast_jit
    def run(params, rest):
        (value, (trained, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(params, rest)
        module = nnx.merge(graph, params, rest, copy=True)
        module.eval()
        evaluated = module(x)
        after = nnx.state(module, nnx.BatchStat)
        return {"loss": value, "trained": trained, "evaluated": evaluated}, gradients, statistics, after

    outputs, *trees = run(params, rest)
    return outputs, *map(paths, trees), paths(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_a_finite_gradient(name):
    outputs, gradients, _, _, _ = ran(name)
    assert np.isfinite(outputs["loss"])
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        if not path.endswith((*UNSEEN, *UNSEEN_BY.get(name, ()))):
            assert np.abs(gradient).max() > 1e-6, path


@pytest.mark.parametrize("name", SMALL)
def test_statistics_change_in_training_only(name):
    outputs, _, trained, evaluated, start = ran(name)
    assert bool(start) == (name not in WITHOUT_BATCH_NORM)
    jax.tree.map(np.testing.assert_array_equal, start, evaluated)
    for path, value in trained.items():
        assert not np.array_equal(value, start[path]), path
    if name in WITHOUT_BATCH_NORM:
        np.testing.assert_allclose(outputs["trained"], outputs["evaluated"], rtol=1e-4, atol=1e-5)
    else:
        assert not np.allclose(outputs["trained"], outputs["evaluated"], atol=1e-3)


def test_batch_norm_momentum_is_one_tenth_a_step():
    model, x = filled_small("resnet_cifar")
    before = 0.9 * np.asarray(model.stem.norm.mean[...])
    expected = before + 0.1 * np.asarray(model.stem.conv(x)).mean((0, 1, 2))
    model.stem(x)
    np.testing.assert_allclose(model.stem.norm.mean[...], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("vit", "dropout"),
        ("convnet", "dropout"),
        ("efficientnet", "drop_path"),
        ("resnet_rs", "drop_path"),
        ("convnext", "drop_path"),
        ("mixer", "drop_path"),
    ],
)
def test_dropout(name, option):
    unused = shapes_of(lambda rngs: small(name, **{option: 0.0})(rngs=rngs))
    assert not jax.tree.leaves(nnx.state(unused, nnx.RngState)), "no stream without use"
    model, x = filled_small(name, **{option: 0.5})
    same = jnp.broadcast_to(x[:1], x.shape)
    assert np.ptp(called(model, same), axis=0).max() > 0.01, "each example has its own draws"
    model.eval()
    assert np.ptp(called(model, same), axis=0).max() < 1e-4


def test_vit_sees_the_order_of_patches_through_positions_only():
    model, x = filled_small("vit")
    model.eval()
    swapped = x.at[:, :4, :4].set(x[:, 4:, 8:]).at[:, 4:, 8:].set(x[:, :4, :4])
    assert not np.allclose(called(model, x), called(model, swapped), atol=1e-3)
    model.positions[...] = jnp.zeros_like(model.positions[...])
    np.testing.assert_allclose(called(model, x), called(model, swapped), rtol=1e-4, atol=1e-5)


def test_vit_embedding_is_the_strided_convolution():
    model, x = filled_small("vit")
    kernel = model.embed.kernel[...].reshape(4, 4, 3, 12)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    embedded = model.embed(patches(x, 4))
    np.testing.assert_allclose(
        embedded, expected.reshape(6, 6, 12) + model.embed.bias[...], rtol=1e-4, atol=1e-5
    )


def test_vit_starts_with_even_logits():
    @fast_jit
    def first(x):
        return small("vit")(rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))(x)

    x = np.random.default_rng(0).standard_normal((6, *SMALL["vit"][1]), np.float32)
    np.testing.assert_array_equal(first(x), np.zeros((6, 5)))
