"""A small model of each family, filled from NumPy: initializers would have to be compiled, layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxaccel import models
from jaxaccel.models.layers.pooling import average_pool_3x3, max_pool_2x2, max_pool_3x3
from jaxaccel.models.vision.efficientnet import Stage
from jaxaccel.models.vision.inception import Conv, Split
from jaxaccel.models.vision.mobilenet import Block

# Small enough to differentiate in a second, with every kind of layer and block of the family.
SMALL = {
    "convnet": (functools.partial(models.ConvNet, (4, 6), hidden=8, image_size=10), (10, 10, 1)),
    "convnet_average": (functools.partial(models.ConvNet, (4, 6), hidden=0, image_size=9), (9, 9, 1)),
    "resnet_cifar": (functools.partial(models.ResNetCifar, 8, width=4), (8, 8, 3)),
    "resnet_basic": (functools.partial(models.ResNet, (1, 1), bottleneck=False, width=4), (20, 20, 3)),
    "resnet_bottleneck": (functools.partial(models.ResNet, (2,), bottleneck=True, width=4), (12, 10, 3)),
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
    "mobilenet": (
        functools.partial(models.MobileNetV2, ((1, 8, 1, 1), (2, 12, 1, 2)), width=0.1, dropout=0.0),
        (12, 10, 3),
    ),
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
            (Stage(1, 3, 1, 4, 1, True), Stage(1, 3, 2, 6, 1, True), Stage(2, 5, 1, 6, 2)),
            stem=4,
            last=8,
            dropout=0.0,
            drop_path=0.0,
        ),
        (15, 18, 3),
    ),
    "densenet": (functools.partial(models.DenseNet, (1, 1), growth=4), (21, 18, 3)),
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

# The compile time is the cost here: a third of it without LLVM's optimizations.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Still(nnx.RngStream):
    """A stream that does not count its draws: counting takes most of the time of tracing a deep model's making."""

    def __call__(self):
        return self.key[...]

    def fork(self, *, split=None):
        return nnx.RngStream(self.key[...], tag=self.tag)


def shapes_of(make):
    """What `make(rngs)` makes, without arrays."""

    def call():
        key = jax.random.key(0)
        rngs = nnx.Rngs(key)
        rngs.params, rngs.dropout = Still(key, tag="params"), Still(key, tag="dropout")
        return make(rngs)

    return nnx.eval_shape(call)


@functools.cache
def published(name):
    """A model of its published size, without arrays."""
    return shapes_of(lambda rngs: getattr(models, name)(rngs=rngs))


def small(name, **options):
    """A factory of `SMALL`, of 5 classes."""
    factory, shape = SMALL[name]
    return functools.partial(factory, classes=5, channels=shape[-1], **options)


def filled(model, seed=0):
    """`model`, which may have no arrays, with random ones; variances are positive, scales around 1."""
    rng = np.random.default_rng(seed)
    for i, (path, variable) in enumerate(nnx.iter_graph(model)):
        if isinstance(variable, nnx.RngKey):
            variable.set_value(jax.random.key(i, impl="rbg"))
        elif isinstance(variable, nnx.RngCount):
            variable.set_value(jnp.zeros(variable.shape, variable.dtype))
        elif isinstance(variable, nnx.Variable):
            noise = 0.4 * rng.standard_normal(variable.shape)
            values = np.abs(noise) + 0.5 if path[-1] == "var" else noise + (path[-1] == "scale")
            variable.set_value(jnp.asarray(values, variable.dtype))
    return model


def filled_small(name, **options):
    """(model, images): of `SMALL`, with random arrays."""
    factory, shape = small(name, **options), SMALL[name][1]
    images = np.random.default_rng(1).standard_normal((6, *shape), np.float32)
    return filled(shapes_of(lambda rngs: factory(rngs=rngs))), jnp.asarray(images)


def initialized(make):
    """What `make(rngs)` makes, its initial values from one program."""

    def split():
        return nnx.split(make(nnx.Rngs(jax.random.key(0, impl="rbg"))))

    graph, _ = nnx.eval_shape(split)
    return nnx.merge(graph, fast_jit(lambda: split()[1])())


def called(model, x):
    """`model(x)` in one program, in the mode that the model is in."""
    return _call(*nnx.split(model), x)


@functools.partial(fast_jit, static_argnums=0)
def _call(graph, state, x):
    return nnx.merge(graph, state)(x)


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(tree))
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in flat}
