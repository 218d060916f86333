"""Every model of `ja.models`, exported, computes what jit does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx_checks
import pytest
from flax import nnx
from onnx_checks import assert_same, families, operators, small_sounds, small_texts, small_writers

from jaxaccel import models
from jaxaccel.models.adapter import inference

VISION = [
    name for name in models.__all__ if name[0].islower() and ".vision." in getattr(models, name).__module__
]
SIDES = {
    "inception_v3": 75,
    "vit_b16": 224,
    "vit_s16": 224,
    "vit_ti16": 224,
    "mixer_s16": 224,
    "mixer_b16": 224,
}


def as_function(model):
    """(function of parameters and inputs, parameters)."""
    graph, state = nnx.split(model)
    return lambda state, *inputs: nnx.merge(graph, state)(*inputs), state


@pytest.mark.parametrize("name", families.SMALL)
def test_small_images(name):
    model, images = families.filled_small(name)
    model.eval()
    assert_same(*as_function(model), [images], batches=(1, 3, 6))


def moderate(model, seed=0):
    """`model` with random weights as large as initializers make them, so that deep ones do not overflow."""
    rng = np.random.default_rng(seed)
    families.filled(model)
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param) and variable.ndim > 1:
            width = np.prod(variable.shape[:-1]) ** 0.5
            noise = rng.standard_normal(variable.shape, np.float32) / width
            variable.set_value(jnp.asarray(noise, variable.dtype))
        elif isinstance(variable, nnx.Variable) and path[-1] in ("scale", "var"):
            variable.set_value(jnp.ones(variable.shape, variable.dtype))
    model.eval()
    return model


@pytest.mark.parametrize("name", VISION)
def test_published_images(name):
    side = SIDES.get(name, 32)
    images = np.random.default_rng(1).standard_normal((3, side, side, 3)).astype(np.float32)
    assert_same(
        *as_function(moderate(families.shapes_of(lambda rngs: getattr(models, name)(rngs=rngs)))), [images]
    )


@pytest.mark.parametrize("name", small_texts.SMALL)
def test_texts(name):
    params, f = small_texts.split(small_texts.small(name))
    texts = small_texts.pad_texts(small_texts.draw_texts([12, 5, 7, 9]), 12)
    model = assert_same(f, params, texts, batches=(1, 4))
    assert (operators(model)["Scan"] > 0) == name.startswith("bilstm")


@pytest.mark.parametrize("name", small_writers.SMALL_WRITERS)
def test_writers(name):
    model, variables = small_writers.small_writer(name)
    sources = small_writers.fill_up(small_writers.draw([6, 3, 4, 5]), 6)
    previous = jnp.asarray(np.random.default_rng(0).integers(3, 20, (4, 5)), jnp.int32)
    inputs = (previous,) if name == "language_model" else (*sources, previous)
    assert_same(inference(model), variables, inputs)


@pytest.mark.parametrize("name", small_sounds.SMALL)
def test_sounds(name):
    params, f = small_sounds.split(small_sounds.small(name))
    features = np.random.default_rng(0).standard_normal((4, 24, 10)).astype(np.float32)
    mask = np.arange(24) < np.array([24, 11, 17, 20])[:, None]
    assert_same(lambda params, *inputs: f(params, *inputs), params, (features, mask))


def test_layers_become_the_operators_of_their_name():
    model, images = families.filled_small("vit")
    model.eval()
    found = operators(assert_same(*as_function(model), [images]))
    assert {name: found[name] for name in ("LayerNormalization", "Softmax", "Gelu", "Erf", "ReduceSum")} == {
        "LayerNormalization": 3, "Softmax": 1, "Gelu": 1, "Erf": 0, "ReduceSum": 0,
    }  # fmt: skip


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate):
    x = np.linspace(-6, 6, 60, dtype=np.float32).reshape(6, 10)
    gelu = functools.partial(jax.nn.gelu, approximate=approximate)
    assert operators(assert_same(lambda w, x: gelu(x), {}, [x]))["Gelu"] == 1


def test_images_are_transposed_once():
    model, images = families.filled_small("resnet_basic")
    model.eval()
    found = operators(assert_same(*as_function(model), [images]))
    assert found["Transpose"] == 1
    assert found["BatchNormalization"] == found["Mul"] == found["Sub"] == 0  # folded into convolutions


def test_pooling_of_blocks_is_one_operator():
    model, images = families.filled_small("convnet")
    model.eval()
    found = operators(assert_same(*as_function(model), [images]))
    assert found["MaxPool"] == 2 and found["Max"] == found["Slice"] == 0


@pytest.mark.parametrize("name", ["resnet_cifar", "vit", "convnext"])
def test_openvino_reads_it(name):
    openvino = pytest.importorskip("openvino")
    model, images = families.filled_small(name)
    model.eval()
    f, state = as_function(model)
    exported = onnx_checks.to_onnx(f, state, [images])
    core = openvino.Core()
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(exported.SerializeToString()), "CPU", precise)
    for batch in (1, 3):
        want = np.asarray(jax.jit(f)(state, images[:batch]))
        got = compiled([np.asarray(images[:batch])])[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))
