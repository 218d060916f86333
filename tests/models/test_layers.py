import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import called, fast_jit, filled, initialized, shapes_of
from flax import nnx

from jaxaccel.models.layers.blocks import SqueezeExcite, StochasticDepth, drop_paths
from jaxaccel.models.layers.pooling import (
    average_pool_2x2,
    average_pool_3x3,
    global_max_pool,
    max_pool_2x2,
    max_pool_3x3,
)
from jaxaccel.models.vision.convnet import ConvNet
from jaxaccel.models.vision.resnet import Bottleneck
from jaxaccel.models.vision.resnet_cifar import BasicBlock, option_a_shortcut


def test_stochastic_depth_drops_whole_examples():
    drop = StochasticDepth(0.25, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((400, 2, 3, 5)), jnp.float32)
    y = np.asarray(drop(x))
    dropped = (y == 0).all(axis=(1, 2, 3))
    np.testing.assert_allclose(y[~dropped], np.asarray(x)[~dropped] / 0.75, rtol=1e-6)
    assert 0.15 < dropped.mean() < 0.35
    assert not np.array_equal(y, drop(x)), "each call draws anew"
    assert drop(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    drop.eval()
    assert drop(x) is x


def test_stochastic_depth_grows_linearly():
    rates = [drop.rate for drop in drop_paths(0.3, 4, rngs=nnx.Rngs(0))]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all(drop.rngs is None for drop in drop_paths(0.0, 2, rngs=nnx.Rngs(0)))


def test_squeeze_and_excite_scales_channels():
    layer = filled(shapes_of(lambda rngs: SqueezeExcite(3, 2, gate=nnx.hard_sigmoid, rngs=rngs)))
    x = np.random.default_rng(0).standard_normal((4, 5, 2, 3)).astype(np.float32)
    hidden = np.maximum(x.mean((1, 2)) @ layer.squeeze.kernel[...] + layer.squeeze.bias[...], 0)
    hidden = hidden @ layer.excite.kernel[...] + layer.excite.bias[...]
    factors = np.clip(hidden / 6 + 0.5, 0, 1)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x * factors[:, None, None], rtol=1e-5, atol=1e-6)


def test_average_pools():
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 2), dtype=np.float32)
    halves = [
        [x[0, :2, :2].mean((0, 1)), x[0, :2, 2:].mean((0, 1))],
        [x[0, 2, :2].mean(0), x[0, 2, 2:].mean(0)],
    ]
    np.testing.assert_allclose(average_pool_2x2(jnp.asarray(x))[0], halves, rtol=1e-5, atol=1e-6)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(x[0], ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1))
    np.testing.assert_allclose(
        average_pool_3x3(jnp.asarray(x))[0], around.mean((-2, -1)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (1, 7, 7, 3), (2, 14, 5, 1), (3, 1, 1, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_2x2_equals_reduce_window(shape, dtype):
    # Distinct integers up to 256, which bfloat16 holds exactly: no ties.
    x = jnp.asarray(np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape) - 100, dtype)

    def reference(x):
        return jax.lax.reduce_window(
            x, jnp.array(-jnp.inf, x.dtype), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
        )

    value, pullback = jax.vjp(max_pool_2x2, x)
    expected, expected_pullback = jax.vjp(reference, x)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, expected)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(value.shape), dtype)
    np.testing.assert_array_equal(pullback(cotangent)[0], expected_pullback(cotangent)[0])


def test_max_pool_2x2_shares_the_gradient_of_ties():
    gradient = jax.grad(lambda x: max_pool_2x2(x).sum())(jnp.zeros((1, 3, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0.25, 0.25], [0.25, 0.25], [0.5, 0.5]])


@pytest.mark.slow
def test_max_pool_2x2_has_its_gradient_where_xla_computes_its_input_anew():
    model = ConvNet((4, 4), hidden=16, dropout=0.0, image_size=14, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (16, 14, 14, 1))

    def loss(params):
        return jnp.sin(3 * nnx.merge(graph, params, rest, copy=True)(x)).mean()

    found, expected = fast_jit(jax.grad(loss))(params), jax.grad(loss)(params)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected))
    assert error < 1e-4 * optax.tree.norm(expected)


def test_global_max_pool_has_its_gradient_at_the_maximum():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 4)), jnp.float32)
    np.testing.assert_array_equal(global_max_pool(x), x.max(axis=(1, 2)))
    weigh = jnp.arange(8.0).reshape(2, 4)
    found, expected = (
        jax.grad(lambda x, f=f: (weigh * f(x)).sum())(x)
        for f in (global_max_pool, lambda x: x.max(axis=(1, 2)))
    )
    np.testing.assert_array_equal(found, expected)


def test_max_pool_2x2_lowers_without_reduce_window():
    text = str(jax.make_jaxpr(jax.grad(lambda x: max_pool_2x2(x).sum()))(jnp.ones((1, 5, 4, 2))))
    assert "reduce_window" not in text and "select_and" not in text


@pytest.mark.parametrize(("stride", "padding"), [(2, (1, 1)), (1, (1, 1)), (2, (0, 0)), (2, (0, 1))])
def test_max_pool_3x3(stride, padding):
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 3), dtype=np.float32)
    padded = np.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = windows[:, ::stride, ::stride].max((-2, -1))
    np.testing.assert_array_equal(max_pool_3x3(jnp.asarray(x), stride=stride, padding=padding), expected)


def numpy_conv(x, kernel, stride):
    """3x3 convolution with one pixel of zeros around, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, np.asarray(kernel, np.float64))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("features", "stride"), [(4, 1), (8, 2)])
def test_cifar_block_equals_numpy(features, stride, training):
    block = filled(shapes_of(lambda rngs: BasicBlock(4, features, stride, rngs=rngs)))
    x = np.random.default_rng(2).standard_normal((3, 6, 6, 4)).astype(np.float32)

    def batch_norm(y, norm):
        mean, var = (y.mean((0, 1, 2)), y.var((0, 1, 2))) if training else (norm.mean[...], norm.var[...])
        return (y - mean) / np.sqrt(np.asarray(var) + 1e-5) * norm.scale[...] + norm.bias[...]

    y = np.maximum(batch_norm(numpy_conv(x, block.conv1.kernel[...], stride), block.norm1), 0)
    y = batch_norm(numpy_conv(y, block.conv2.kernel[...], 1), block.norm2)
    shortcut = np.zeros_like(y)
    before = (features - 4) // 2
    shortcut[..., before : before + 4] = x[:, ::stride, ::stride]
    expected = np.maximum(y + shortcut, 0)

    block.train() if training else block.eval()
    np.testing.assert_allclose(called(block, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_option_a_shortcut():
    x = jnp.arange(2 * 4 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 4, 2)
    assert option_a_shortcut(x, 2, 1) is x
    y = option_a_shortcut(x, 4, 2)
    np.testing.assert_array_equal(y[..., 1:3], x[:, ::2, ::2])
    assert not y[..., 0].any() and not y[..., 3].any()


def test_resnet_blocks_start_as_their_shortcut():
    block = initialized(lambda rngs: Bottleneck(16, 4, 4, 1, rngs=rngs))
    block.eval()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 16)), jnp.float32)
    np.testing.assert_array_equal(called(block, x), nnx.relu(x))
