import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxaccel.errors import UserError
from jaxaccel.models.vision.convnet import ConvNet
from jaxaccel.models.vision.resnet_cifar import ResNetCifar
from jaxaccel.models.vision.vit import VisionTransformer
from jaxaccel.optim.scaling import layer_decay, layer_depths, scale_by_path

PARAMS = {
    "stem": {"kernel": jnp.ones(2)},
    "blocks": [{"kernel": jnp.ones(2), "bias": jnp.ones(2)}, {"kernel": jnp.ones(2), "bias": jnp.ones(2)}],
    "head": {"kernel": jnp.ones(2)},
}


def scaled(tx, updates=PARAMS):
    out, _ = jax.jit(lambda u: tx.update(u, tx.init(PARAMS)))(updates)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): float(v[0]) for k, v in
            jax.tree_util.tree_leaves_with_path(out)}  # fmt: skip


def test_the_last_pattern_wins():
    assert scaled(scale_by_path({"**/kernel": 0.5, "head/**": 10.0, "blocks/0/**": 0.0})) == {
        "stem/kernel": 0.5,
        "blocks/0/kernel": 0.0,
        "blocks/0/bias": 0.0,
        "blocks/1/kernel": 0.5,
        "blocks/1/bias": 1.0,
        "head/kernel": 10.0,
    }


def test_what_is_frozen_stays_when_its_gradient_overflows():
    infinite = jax.tree.map(lambda x: x * jnp.inf, PARAMS)
    assert scaled(scale_by_path({"stem/**": 0.0}), infinite)["stem/kernel"] == 0.0


def test_layer_decay_of_beit():
    assert scaled(layer_decay(0.5)) == {
        "stem/kernel": 0.125,
        "blocks/0/kernel": 0.25,
        "blocks/0/bias": 0.25,
        "blocks/1/kernel": 0.5,
        "blocks/1/bias": 0.5,
        "head/kernel": 1.0,
    }


def test_behind_an_optimizer():
    tx = optax.chain(optax.sgd(0.1), layer_decay(0.5))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["blocks"][0]["bias"], -0.025)


def depths(make):
    """Depth of the layers of an NNX model, one entry a layer."""
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    found = layer_depths(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert list(found.values()) == sorted(found.values())
    return found


def test_layers_of_a_vision_transformer():
    found = depths(lambda rngs: VisionTransformer(width=8, depth=3, heads=2, image_size=32, rngs=rngs))
    assert {found[p] for p in ("embed/kernel", "embed/bias", "class_token", "positions")} == {0}
    assert found["blocks/2/mlp/up/kernel"] == found["blocks/2/norm1/scale"] == 3
    assert found["norm/scale"] == found["head/kernel"] == 4


def test_layers_of_residual_networks():
    found = depths(lambda rngs: ResNetCifar(14, width=2, rngs=rngs))
    assert found["stem/conv/kernel"] == 0
    assert [found[f"stages/{i}/{j}/conv1/kernel"] for i in range(3) for j in range(2)] == [1, 2, 3, 4, 5, 6]
    assert found["head/bias"] == 7


def test_numbers_within_a_layer_do_not_divide_it():
    found = depths(lambda rngs: ConvNet((2, 3), hidden=4, image_size=8, rngs=rngs))
    assert found["stages/1/first/conv/kernel"] == found["stages/1/residuals/0/conv/kernel"] == 2
    assert found["hidden/kernel"] == found["hidden_norm/scale"] == found["head/kernel"] == 3


def test_numbers_are_sorted_as_numbers():
    assert layer_depths({"blocks": [jnp.ones(1)] * 11})["blocks/10"] == 11  # after 9, not after 1


def test_what_stands_first_can_be_said():
    params = {"conv_init": jnp.ones(1), "blocks": [jnp.ones(1)], "head": jnp.ones(1)}
    assert layer_depths(params)["conv_init"] == 2
    assert layer_depths(params, first=["conv_init"]) == {"conv_init": 0, "blocks/0": 1, "head": 2}


@pytest.mark.parametrize(
    "make, says",
    [
        (
            lambda: scale_by_path({"heads/**": 1.0}).init(PARAMS),
            "matches none of the 6 parameters; nearest: head",
        ),
        (lambda: scale_by_path({"head/**": -1.0}), "must be >= 0, not -1.0"),
        (lambda: layer_decay(1.5), r"must be in \(0, 1\]"),
        (lambda: layer_decay(0.9).init({"head": jnp.ones(1)}), "needs numbered layers"),
    ],
)
def test_mistakes(make, says):
    with pytest.raises(UserError, match=says):
        make()
