"""Outputs equal timm's, or torchvision's where timm lacks a model, with the same random weights and statistics.

The rule: both list their layers in the order in which they were made, and layers correspond one to one. Needs the
extra ``bench``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxaccel import models
from jaxaccel.models.layers.counts import count_multiply_adds

timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
flop_counter = pytest.importorskip("torch.utils.flop_counter")
SDPBackend, sdpa_kernel = torch.nn.attention.SDPBackend, torch.nn.attention.sdpa_kernel

NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
TANH = {"act_layer": functools.partial(torch.nn.GELU, approximate="tanh")}
"""As in the code of the papers; timm's default is the exact GELU."""

# Ours: (the library, its name, its options, height and width).
REFERENCES = {
    "convnext_tiny": ("timm", "convnext_tiny", {}, (96, 104)),
    "densenet121": ("timm", "densenet121", {}, (97, 101)),
    "efficientnet_b0": ("timm", "efficientnet_b0", {}, (97, 101)),
    "efficientnet_v2_s": ("torchvision", "efficientnet_v2_s", {}, (97, 101)),
    "googlenet": (
        "torchvision",
        "googlenet",
        {"aux_logits": False, "transform_input": False, "init_weights": False},
        (97, 102),
    ),
    "inception_v3": ("timm", "inception_v3", {}, (107, 126)),
    "mixer_b16": ("timm", "mixer_b16_224", TANH, (224, 224)),
    "mixer_s16": ("timm", "mixer_s16_224", TANH, (224, 224)),
    "mobilenet_v2": ("timm", "mobilenetv2_100", {}, (97, 101)),
    "mobilenet_v3_large": ("torchvision", "mobilenet_v3_large", {}, (97, 101)),
    "mobilenet_v3_small": ("torchvision", "mobilenet_v3_small", {}, (97, 101)),
    "resnet18": ("timm", "resnet18", {}, (97, 101)),
    "resnet34": ("timm", "resnet34", {}, (97, 101)),
    "resnet50": ("timm", "resnet50", {}, (97, 101)),
    "resnet50d": ("timm", "resnet50d", {}, (97, 101)),
    "resnet_rs50": ("timm", "resnetrs50", {}, (97, 101)),
    "resnext50_32x4d": ("timm", "resnext50_32x4d", {}, (97, 101)),
    "se_resnet50": ("timm", "seresnet50", {}, (97, 101)),
    "vit_b16": ("timm", "vit_base_patch16_224", TANH, (224, 224)),
    "vit_s16": ("timm", "vit_small_patch16_224", TANH, (224, 224)),
    "vit_ti16": ("timm", "vit_tiny_patch16_224", TANH, (224, 224)),
}


def reference(library, name, options):
    """The PyTorch model in inference, with random weights and statistics that keep its activations near 1."""
    if library == "timm":
        model = timm.create_model(name, **options)
    else:
        model = getattr(torchvision.models, name)(weights=None, **options)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.ndim > 1:
                drawn = rng.normal(0, (2 / np.prod(value.shape[1:])) ** 0.5, value.shape)
            elif key.endswith(("weight", "running_var", "gamma")):
                drawn = rng.uniform(0.5, 1.5, value.shape)
            else:
                drawn = rng.normal(0, 0.1, value.shape)
            if value.is_floating_point():
                value.copy_(torch.from_numpy(np.asarray(drawn)))
    return model.double().eval()


def torch_layers(module, name=""):
    """The arrays of each layer, in the order of making; those of a layer itself before those inside it."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    layer = {key: value.detach().numpy() for key, value in own if key != "num_batches_tracked"}
    if name == "qkv":
        for part in range(3):
            yield {key: np.split(value, 3)[part] for key, value in layer.items()}
    elif layer:
        yield layer
    for inner, child in module.named_children():
        yield from torch_layers(child, inner)


def our_layers(module):
    """The variables of each layer, likewise."""
    members = module if isinstance(module, nnx.List) else vars(module).values()
    if layer := {
        key: value for key, value in vars(module).items() if isinstance(value, nnx.Param | nnx.BatchStat)
    }:
        yield layer
    for member in members:
        if isinstance(member, nnx.Module):
            yield from our_layers(member)


def filled(name, other):
    """Our model with the arrays of the PyTorch one."""
    model = getattr(models, name)(rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))
    for ours, theirs in zip(our_layers(model), torch_layers(other), strict=True):
        assert len(ours) == len(theirs), (ours.keys(), theirs.keys())
        for (key, variable), value in zip(ours.items(), theirs.values(), strict=True):
            value = theirs.get(NAMES.get(key, key), value)
            if value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
            elif key == "kernel":
                value = value.T
            assert value.size == variable[...].size, (key, value.shape, variable.shape)
            variable.set_value(jnp.asarray(value).reshape(variable.shape))
    model.eval()
    return model


def test_every_imagenet_model_has_a_reference():
    sizes = {
        name
        for name in models.__all__
        if name[0].islower() and ".vision." in getattr(models, name).__module__
    }
    assert sizes - REFERENCES.keys() == {f"resnet{n}" for n in (20, 32, 44, 56, 110)} | {"cifar_fast"}


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_are_equal(name, record_property):
    """In float64: what float32 rounds, some of these networks amplify up to 1e-4."""
    library, theirs, options, size = REFERENCES[name]
    other = reference(library, theirs, options)
    x = np.random.default_rng(1).standard_normal((2, *size, 3))
    x[1] = 3 * x[1] + 1  # averages of noise alone would be too much alike
    # Attention as two products: newer versions of PyTorch count nothing of the fused one on a CPU.
    as_products = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), as_products, flop_counter.FlopCounterMode(display=False) as counted:
        expected = other(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    with jax.enable_x64(True):
        model = filled(name, other)
        assert 2 * len(x) * count_multiply_adds(model, x.shape[1:]) == counted.get_total_flops()
        graph, state = nnx.split(model)
        # The compile time is the cost here.
        run = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        found = np.asarray(run(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(x)))
    assert found.dtype == expected.dtype == "float64" and found.shape == expected.shape == (2, 1000)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max(), "the images do not matter"
    deviation = np.abs(found - expected).max() / np.abs(expected).max()
    record_property("deviation", f"{deviation:.1e}")
    print(f"{name}: {deviation:.1e}")
    # jax.nn.dot_product_attention takes its softmax in float32 whatever comes in.
    assert deviation < (1e-6 if name.startswith("vit") else 1e-10)
