"""Weights of PyTorch's models find their places in ours by themselves, and ours compute what theirs do.

Needs the extra ``bench``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.models.adapter import as_model

timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
save_file = pytest.importorskip("safetensors.torch").save_file

# Ours: (library, its name, height and width).
PAIRS = [
    ("resnet18", "torchvision", "resnet18", 96), ("resnet50", "torchvision", "resnet50", 96),
    ("resnet50", "timm", "resnet50", 96),
    ("resnet50d", "timm", "resnet50d", 96), ("se_resnet50", "timm", "seresnet50", 96),
    ("resnext50_32x4d", "torchvision", "resnext50_32x4d", 96), ("mobilenet_v2", "torchvision", "mobilenet_v2", 96),
    ("mobilenet_v2", "timm", "mobilenetv2_100", 96), ("mobilenet_v3_small", "torchvision", "mobilenet_v3_small", 96),
    ("mobilenet_v3_large", "torchvision", "mobilenet_v3_large", 96), ("efficientnet_b0", "timm", "efficientnet_b0", 96),
    ("efficientnet_v2_s", "torchvision", "efficientnet_v2_s", 96), ("densenet121", "torchvision", "densenet121", 96),
    ("inception_v3", "timm", "inception_v3", 107), ("googlenet", "torchvision", "googlenet", 97),
    ("convnext_tiny", "timm", "convnext_tiny", 96), ("vit_ti16", "timm", "vit_tiny_patch16_224", 224),
    ("vit_b16", "torchvision", "vit_b_16", 224), ("mixer_b16", "timm", "mixer_b16_224", 224),
]  # fmt: skip


ASKS = {"inception_v3"}
"""In safetensors, which sorts by name: neither names nor order tell parallel layers of its last blocks apart."""


def reference(library, name):
    """Their model in inference, with random weights and statistics that keep activations near 1."""
    if library == "timm":
        model = timm.create_model(name)
    else:
        more = (
            {"aux_logits": False, "transform_input": False, "init_weights": False}
            if name == "googlenet"
            else {}
        )
        model = getattr(torchvision.models, name)(weights=None, **more)
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
    return model.eval()


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
@pytest.mark.parametrize(("ours", "library", "theirs", "size"), PAIRS, ids=lambda x: str(x))
def test_the_outputs_are_equal(ours, library, theirs, size, kind, tmp_path):
    other = reference(library, theirs)
    file = tmp_path / "weights"
    if kind == "torch":
        torch.save(other.state_dict(), file)
    else:
        save_file({name: x.contiguous() for name, x in other.state_dict().items()}, file)
    shape = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    exact = {"exact_gelu": True} if ours.startswith(("vit", "mixer")) else {}
    model = as_model(
        getattr(models, ours), {"classes": 1000, "channels": 3, "image_size": size, **exact}, (shape,)
    )
    if kind == "safetensors" and theirs in ASKS:
        with pytest.raises(ja.UserError, match=r"could be .* say which, names="):
            ja.models.load_pretrained(model, file, inputs=(shape,))
        return
    loaded = ja.models.load_pretrained(model, file, inputs=(shape,))
    assert not loaded.unused, loaded.report()
    if kind == "safetensors":  # sorted by name, and yet all is where it is from the other file
        torch.save(other.state_dict(), file)
        again = ja.models.load_pretrained(model, file, inputs=(shape,))
        jax.tree.map(np.testing.assert_array_equal, loaded.params, again.params)
        jax.tree.map(np.testing.assert_array_equal, loaded.state, again.state)
        return
    x = np.random.default_rng(1).standard_normal(shape.shape)
    x[1] = 3 * x[1] + 1
    with torch.inference_mode():
        expected = other.double()(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    with jax.enable_x64(True):  # what float32 rounds, some of these networks amplify
        run = jax.jit(
            lambda p, s, x: model.apply(p, s, x, key=jax.random.key(0), train=False)[0],
            compiler_options={"xla_backend_optimization_level": 0},
        )
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (loaded.params, loaded.state))
        found = np.asarray(run(*wide, jnp.asarray(x)))
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), loaded.report()
