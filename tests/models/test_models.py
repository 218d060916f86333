import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxaccel import models
from jaxaccel.models.blocks import SqueezeExcite, StochasticDepth, drop_paths
from jaxaccel.models.counts import multiply_adds, parameters
from jaxaccel.models.efficientnet import Stage
from jaxaccel.models.inception import Conv, Split
from jaxaccel.models.mobilenet import Block
from jaxaccel.models.pooling import average_pool_2x2, average_pool_3x3, max_pool_2x2, max_pool_3x3
from jaxaccel.models.resnet_cifar import BasicBlock, option_a_shortcut

# Small enough to differentiate in a second, with every kind of layer and block of the family.
SMALL = {
    "convnet": (functools.partial(models.ConvNet, (4, 6), hidden=8, image_size=10), (10, 10, 1)),
    "convnet_average": (functools.partial(models.ConvNet, (4, 6), hidden=0, image_size=9), (9, 9, 1)),
    "resnet_cifar": (functools.partial(models.ResNetCifar, 8, width=4), (8, 8, 3)),
    "resnet_basic": (functools.partial(models.ResNet, (1, 1), bottleneck=False, width=4), (32, 32, 3)),
    "resnet_bottleneck": (functools.partial(models.ResNet, (2, 1), bottleneck=True, width=4), (32, 32, 3)),
    "resnet_rs": (
        functools.partial(
            models.ResNet,
            (1, 1),
            bottleneck=True,
            width=4,
            stem="3x3",
            pool="conv",
            groups=2,
            group_width=2,
            squeeze=1 / 4,
            average_shortcut=True,
        ),
        (17, 19, 3),
    ),
    "mobilenet": (functools.partial(models.MobileNetV2, width=0.1, dropout=0.0), (32, 32, 3)),
    "mobilenet_v3": (
        functools.partial(
            models.MobileNetV3,
            (Block(3, 8, 8, True, nnx.relu, 2), Block(5, 24, 8, True, nnx.hard_swish, 1)),
            hidden=8,
            width=0.5,
            dropout=0.0,
        ),
        (11, 9, 3),
    ),
    "efficientnet": (
        functools.partial(
            models.EfficientNet,
            (Stage(1, 3, 1, 4, 1, True), Stage(2, 3, 2, 6, 1, True), Stage(2, 5, 1, 6, 2)),
            stem=4,
            last=8,
            dropout=0.0,
            drop_path=0.0,
        ),
        (15, 18, 3),
    ),
    "densenet": (functools.partial(models.DenseNet, (1, 2), growth=4), (21, 18, 3)),
    "inception": (
        functools.partial(
            models.Inception,
            (Conv(4, 3, 2, False), max_pool_3x3),
            (
                ((Conv(2, (1, 3)), Split((Conv(2), Conv(3, (3, 1))))), (average_pool_3x3, Conv(2))),
                max_pool_2x2,
                ((Conv(4),),),
            ),
            dropout=0.0,
        ),
        (23, 18, 3),
    ),
    "convnext": (functools.partial(models.ConvNeXt, (1, 1), (4, 6)), (17, 18, 3)),
    "mixer": (
        functools.partial(models.Mixer, width=8, depth=2, patch_size=4, image_size=(8, 12)),
        (8, 12, 3),
    ),
    "vit": (
        functools.partial(
            models.VisionTransformer, width=12, depth=1, heads=3, patch_size=4, image_size=(8, 12)
        ),
        (8, 12, 3),
    ),
}


WITHOUT_BATCH_NORM = ("convnext", "mixer", "vit")
# Softmax does not see what is added to all its inputs, BatchNorm, behind a 1x1 convolution, what is added to all
# pixels of a channel, LayerNorm what is added to all channels: these biases have no gradient in exact arithmetic.
UNSEEN = ("attention/key/bias", "project/norm/bias", "tokens/down/bias")


def fast_rngs():
    """Random streams whose draws compile several times faster than threefry's, once for each shape."""
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


@functools.cache
def shapes(name):
    """A model of its published size, without arrays."""
    return nnx.eval_shape(lambda: getattr(models, name)(rngs=fast_rngs()))


@functools.cache
def built(name, **options):
    factory, shape = SMALL[name]
    return factory(classes=5, channels=shape[-1], rngs=fast_rngs(), **options)


def small(name, **options):
    x = np.random.default_rng(0).standard_normal((6, *SMALL[name][1]), dtype=np.float32)
    return nnx.clone(built(name, **options)), jnp.asarray(x)


def disturb(model):
    """Adds noise to every parameter, so that none is at a symmetric initial value such as 0."""
    params = nnx.state(model, nnx.Param)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(
        lambda p: jnp.asarray(p + 0.2 * rng.standard_normal(p.shape), p.dtype),
        jax.tree.map(np.asarray, params),
    )
    nnx.update(model, noisy)


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(tree))
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in flat}


def filled(name, **options):
    """(model, images): the model with random arrays that need no compiled initialisation."""
    factory, shape = SMALL[name]
    model = nnx.eval_shape(lambda: factory(classes=5, channels=shape[-1], rngs=fast_rngs(), **options))
    rng = np.random.default_rng(0)
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.RngKey):
            variable.set_value(jax.random.key(len(str(path)), impl="rbg"))
        elif isinstance(variable, nnx.Variable):
            noise = 0.4 * rng.standard_normal(variable.shape)
            around = {"scale": 1, "var": 0}.get(path[-1], 0)
            values = np.abs(noise) + 0.5 if path[-1] == "var" else noise + around
            variable.set_value(jnp.asarray(values, variable.dtype))
    return model, jnp.asarray(rng.standard_normal((6, *shape)), jnp.float32)


# The compile time is the cost here: a third of it without LLVM's optimisations.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def ran(name):
    """What training and then inference make of a model: its loss, gradients, outputs and statistics."""
    model, x = filled(name)
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


# Parameters, multiply-adds in millions, and the side of the images: as in torchvision's table of weights, in timm's
# results (ResNet-D, RS and SE, Mixer, ViT-Ti and S), or, for CIFAR, as papers on pruning have them.
PUBLISHED = {
    "convnext_tiny": (28_589_128, 4456, 224),
    "densenet121": (7_978_856, 2834, 224),
    "efficientnet_b0": (5_288_548, 386, 224),
    "efficientnet_v2_s": (21_458_488, 8366, 384),
    "googlenet": (6_624_904, 1498, 224),
    "inception_v3": (23_834_568, 5713, 299),
    "mixer_b16": (59_880_472, 12_610, 224),
    "mixer_s16": (18_528_264, 3790, 224),
    "mobilenet_v2": (3_504_872, 301, 224),
    "mobilenet_v3_large": (5_483_032, 217, 224),
    "mobilenet_v3_small": (2_542_856, 57, 224),
    "resnet18": (11_689_512, 1814, 224),
    "resnet20": (269_722, 40.6, 32),
    "resnet32": (464_154, 68.9, 32),
    "resnet34": (21_797_672, 3664, 224),
    "resnet44": (658_586, 97.2, 32),
    "resnet50": (25_557_032, 4089, 224),
    "resnet50d": (25_576_264, 4350, 224),
    "resnet56": (853_018, 125.5, 32),
    "resnet110": (1_727_962, 252.9, 32),
    "resnet_rs50": (35_691_912, 2290, 160),
    "resnext50_32x4d": (25_028_904, 4230, 224),
    "se_resnet50": (28_088_024, 4130, 224),
    "vit_b16": (86_567_656, 17_564, 224),
    "vit_s16": (22_050_664, 4610, 224),
    "vit_ti16": (5_717_416, 1260, 224),
}


@pytest.mark.parametrize("name", [name for name in models.__all__ if name[0].islower()])
def test_size_and_cost_are_the_published_ones(name):
    count, millions, side = PUBLISHED[name]

    model = shapes(name)
    assert parameters(model) == count
    assert multiply_adds(model, (side, side, 3)) == pytest.approx(1e6 * millions, rel=0.01)


def test_parameters_are_float32():
    for name in PUBLISHED:
        assert {p.dtype for p in jax.tree.leaves(nnx.state(shapes(name), nnx.Param))} == {
            jnp.dtype("float32")
        }


def test_multiply_adds_of_a_layer():
    conv = nnx.Conv(4, 6, (3, 5), strides=2, padding=1, feature_group_count=2, rngs=nnx.Rngs(0))
    assert multiply_adds(conv, (9, 11, 4)) == (5 * 5 * 6) * (3 * 5 * 2)
    assert multiply_adds(nnx.Linear(3, 7, rngs=nnx.Rngs(0)), (5, 2, 3)) == 10 * 21


@pytest.mark.parametrize(
    ("name", "options", "shape", "classes"),
    [
        ("ConvNet", {}, (28, 28, 1), 10),
        ("ConvNet", {"widths": (8, 16), "image_size": 8}, (8, 8, 1), 10),
        ("ConvNet", {"channels": 3, "image_size": (15, 32), "classes": 4}, (15, 32, 3), 4),
        ("ConvNet", {"hidden": 0}, (17, 9, 1), 10),
        ("resnet20", {"classes": 100, "channels": 1}, (32, 32, 1), 100),
        ("resnet18", {}, (224, 224, 3), 1000),
        ("resnet50", {"classes": 7}, (65, 90, 3), 7),
        ("resnet_rs50", {}, (65, 91, 3), 1000),
        ("mobilenet_v2", {"classes": 7}, (65, 90, 3), 7),
        ("mobilenet_v3_small", {"classes": 7, "channels": 1}, (33, 47, 1), 7),
        ("efficientnet_b0", {}, (65, 91, 3), 1000),
        ("densenet121", {}, (29, 45, 3), 1000),
        ("googlenet", {}, (33, 50, 3), 1000),
        ("inception_v3", {}, (75, 92, 3), 1000),
        ("convnext_tiny", {}, (33, 50, 3), 1000),
        ("mixer_s16", {"classes": 7, "channels": 1, "image_size": (32, 48)}, (32, 48, 1), 7),
        ("vit_ti16", {}, (224, 224, 3), 1000),
        ("vit_s16", {"image_size": 32, "patch_size": 4, "classes": 10, "dropout": 0.1}, (32, 32, 3), 10),
    ],
)
def test_output_shape_and_dtype(name, options, shape, classes):
    def make():
        return getattr(models, name)(**options, rngs=fast_rngs())

    graph, state = nnx.split(nnx.eval_shape(make) if options or name not in PUBLISHED else shapes(name))
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, x)
    assert (out.shape, out.dtype) == ((2, classes), jnp.float32)


def test_parameter_paths():
    def of(factory):
        return paths(nnx.state(shapes(factory.__name__), nnx.Param))

    cifar = of(models.resnet20)
    assert {"stem/conv/kernel", "stages/0/1/conv1/kernel", "stages/2/0/norm2/scale", "head/kernel"} <= set(
        cifar
    )
    assert not any("shortcut" in path for path in cifar)
    resnet = of(models.resnet50)
    assert {"stem/conv/kernel", "stages/0/0/conv3/kernel", "stages/1/0/shortcut/conv/kernel"} <= set(resnet)
    mobile = of(models.mobilenet_v2)
    assert mobile["blocks/16/depthwise/conv/kernel"].shape == (3, 3, 1, 960)
    assert {"blocks/1/expand/conv/kernel", "blocks/0/project/norm/bias", "last/conv/kernel"} <= set(mobile)
    assert not any(path.startswith("blocks/0/expand") for path in mobile)
    convnet = of(models.ConvNet)
    assert {"stages/0/first/conv/kernel", "stages/2/residuals/0/conv/kernel", "hidden/kernel"} <= set(convnet)
    squeezing = of(models.resnet_rs50)
    assert {"stem/layers/2/norm/scale", "pool/conv/kernel", "stages/0/1/squeeze_excite/excite/bias"} <= set(
        squeezing
    )
    assert squeezing["stages/3/0/conv2/kernel"].shape == (3, 3, 512, 512)
    assert of(models.resnext50_32x4d)["stages/3/0/conv2/kernel"].shape == (3, 3, 32, 1024)
    assert {"blocks/0/norm1/scale", "blocks/6/conv/kernel", "norm/bias"} <= set(of(models.densenet121))
    assert {"blocks/0/scale", "blocks/3/layers/1/kernel", "blocks/20/up/kernel"} <= set(
        of(models.convnext_tiny)
    )
    assert "blocks/10/branches/2/layers/2/branches/1/layers/0/conv/kernel" in of(models.inception_v3)
    vit = of(models.vit_s16)
    for name in ("query", "key", "value"):
        assert vit[f"blocks/11/attention/{name}/kernel"].shape == (384, 6, 64)
    assert vit["blocks/0/attention/out/kernel"].shape == (6, 64, 384)
    assert vit["blocks/0/mlp/up/kernel"].shape == (384, 1536)
    assert vit["blocks/0/mlp/down/kernel"].shape == (1536, 384)
    assert vit["positions"].shape == (1, 197, 384)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_a_finite_gradient(name):
    outputs, gradients, _, _, _ = ran(name)
    assert np.isfinite(outputs["loss"])
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        if not path.endswith(UNSEEN):
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
    model, x = filled("resnet_cifar")
    model.train()
    before = 0.9 * np.asarray(model.stem.norm.mean[...])
    expected = before + 0.1 * np.asarray(model.stem.conv(x)).mean((0, 1, 2))
    model(x)
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
    assert not jax.tree.leaves(nnx.state(filled(name, **{option: 0.0})[0], nnx.RngState)), (
        "no stream without use"
    )
    model, x = filled(name, **{option: 0.5})
    graph, state = nnx.split(model)

    @fast_jit
    def twice(state):
        model = nnx.merge(graph, state)
        trained = model(x), model(x)
        model.eval()
        return trained, (model(x), model(x))

    trained, evaluated = twice(state)
    assert not np.array_equal(*trained)
    np.testing.assert_array_equal(*evaluated)


def test_stochastic_depth_drops_whole_examples():
    drop = StochasticDepth(0.25, rngs=fast_rngs())
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
    rates = [drop.rate for drop in drop_paths(0.3, 4, rngs=fast_rngs())]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert all(drop.rngs is None for drop in drop_paths(0.0, 2, rngs=fast_rngs()))


def test_squeeze_and_excite_scales_channels():
    layer = SqueezeExcite(3, 2, gate=nnx.hard_sigmoid, rngs=fast_rngs())
    x = np.random.default_rng(0).standard_normal((4, 5, 2, 3)).astype(np.float32)
    hidden = np.maximum(x.mean((1, 2)) @ layer.squeeze.kernel[...], 0) @ layer.excite.kernel[...]
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
    block = BasicBlock(4, features, stride, rngs=fast_rngs())
    disturb(block)
    rng = np.random.default_rng(2)
    for norm in (block.norm1, block.norm2):
        norm.mean[...] = jnp.asarray(rng.standard_normal(features), jnp.float32)
        norm.var[...] = jnp.asarray(rng.uniform(0.5, 2.0, features), jnp.float32)
    x = rng.standard_normal((3, 6, 6, 4)).astype(np.float32)

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
    np.testing.assert_allclose(block(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_option_a_shortcut():
    x = jnp.arange(2 * 4 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 4, 2)
    assert option_a_shortcut(x, 2, 1) is x
    y = option_a_shortcut(x, 4, 2)
    np.testing.assert_array_equal(y[..., 1:3], x[:, ::2, ::2])
    assert not y[..., 0].any() and not y[..., 3].any()


def test_resnet_blocks_start_as_their_shortcut():
    model, _ = small("resnet_bottleneck")
    model.eval()
    block = model.stages[0][1]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 16)), jnp.float32)
    np.testing.assert_array_equal(block(x), nnx.relu(x))


def test_bottleneck_strides_in_the_3x3_convolution():
    model = nnx.eval_shape(lambda: small("resnet_bottleneck")[0])
    block = model.stages[1][0]
    strides = [conv.strides for conv in (block.conv1, block.conv2, block.conv3)]
    assert [s if isinstance(s, int) else max(s) for s in strides] == [1, 2, 1]


def test_mobilenet_channels_are_multiples_of_eight():
    def widths(width):
        model = nnx.eval_shape(lambda: models.mobilenet_v2(width=width, rngs=nnx.Rngs(0)))
        return [block.project.conv.out_features for block in model.blocks], model.head.in_features

    stages = [(16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)]
    assert widths(1.0) == ([n for n, count in stages for _ in range(count)], 1280)
    narrow = [(8, 1), (8, 2), (16, 3), (24, 4), (32, 3), (56, 3), (112, 1)]  # torchvision's at 0.35
    assert widths(0.35) == ([n for n, count in narrow for _ in range(count)], 1280)
    assert widths(1.4)[1] == 1792


def test_mobilenet_blocks_add_their_input_where_shapes_allow():
    model = nnx.eval_shape(lambda: models.mobilenet_v2(rngs=nnx.Rngs(0)))
    assert [i for i, block in enumerate(model.blocks) if block.residual] == [2, 4, 5, 7, 8, 9, 11, 12, 14, 15]
    strides = [block.depthwise.conv.strides for block in model.blocks]
    assert [i for i, s in enumerate(strides) if s == 2 or s == (2, 2)] == [1, 3, 6, 13]


def test_vit_sees_the_order_of_patches_through_positions_only():
    model, x = filled("vit")
    model.eval()
    swapped = x.at[:, :4, :4].set(x[:, 4:, 8:]).at[:, 4:, 8:].set(x[:, :4, :4])
    assert not np.allclose(model(x), model(swapped), atol=1e-3)
    model.positions[...] = jnp.zeros_like(model.positions[...])
    np.testing.assert_allclose(model(x), model(swapped), rtol=1e-4, atol=1e-5)


def test_vit_embedding_is_the_strided_convolution():
    model, x = filled("vit")
    kernel = model.embed.kernel[...].reshape(4, 4, 3, 12)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    embedded = model.embed(models.vit.patches(x, 4))
    np.testing.assert_allclose(
        embedded, expected.reshape(6, 6, 12) + model.embed.bias[...], rtol=1e-4, atol=1e-5
    )


def test_vit_starts_with_even_logits():
    model, x = small("vit")
    np.testing.assert_array_equal(model(x), np.zeros((6, 5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: models.ConvNet((), rngs=r), "widths"),
        (lambda r: models.ConvNet((8, 16), residuals=(1,), rngs=r), "residuals must be 2 numbers"),
        (lambda r: models.ConvNet(dropout=1.5, rngs=r), "dropout"),
        (
            lambda r: models.ConvNet((4,), hidden=4, rngs=r)(jnp.ones((1, 8, 8, 1))),
            r"\(28, 28, 1\).*\(1, 8, 8, 1\)",
        ),
        (lambda r: models.ConvNet((4,), hidden=0, rngs=r)(jnp.ones((1, 8, 8, 3))), "built for images"),
        (lambda r: models.ResNetCifar(21, rngs=r), r"depth must be 6n \+ 2"),
        (lambda r: models.ResNetCifar(20, width=5, rngs=r), "width must be even"),
        (lambda r: models.ResNet((2, 0), bottleneck=True, rngs=r), "blocks"),
        (
            lambda r: models.ResNet((1,), bottleneck=True, stem="5x5", rngs=r),
            "stem='5x5' must be '7x7' or '3x3'",
        ),
        (lambda r: models.ResNet((1,), bottleneck=True, pool="none", rngs=r), "pool='none' 'max' or 'conv'"),
        (lambda r: models.resnet50(drop_path=1.0, rngs=r), "drop_path=1.0 must be in"),
        (lambda r: models.mobilenet_v2(width=0, rngs=r), "width=0 must be positive"),
        (lambda r: models.mobilenet_v3_small(width=0, rngs=r), "width=0 must be positive"),
        (lambda r: models.MobileNetV3((), hidden=8, rngs=r), "blocks must be one or more"),
        (lambda r: models.EfficientNet((), rngs=r), "one or more blocks"),
        (
            lambda r: models.EfficientNet((Stage(1, 3, 1, 4, 1),), dropout=-0.1, rngs=r),
            "dropout=-0.1 must be in",
        ),
        (lambda r: models.DenseNet((2, 0), rngs=r), "blocks"),
        (lambda r: models.Inception((), (), dropout=1, rngs=r), "dropout=1 must be in"),
        (lambda r: models.ConvNeXt((1, 1), (4,), rngs=r), "blocks=.* and widths="),
        (lambda r: models.mixer_s16(image_size=(32, 30), rngs=r), "32x30 is no multiple of patch_size=16"),
        (lambda r: small("mixer")[0](jnp.ones((1, 12, 8, 3))), "built for images"),
        (lambda r: models.vit_s16(image_size=30, rngs=r), "30x30 is no multiple of patch_size=16"),
        (lambda r: models.VisionTransformer(width=10, depth=1, heads=3, rngs=r), "heads=3"),
        (lambda r: models.VisionTransformer(width=9, depth=1, heads=3, dropout=-1, rngs=r), "dropout"),
        (lambda r: small("vit")[0](jnp.ones((1, 12, 8, 3))), "built for images"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(fast_rngs())
    assert "\n" not in str(caught.value)
