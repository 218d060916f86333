"""Any Flax module, NNX or Linen, becomes two pure functions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxaccel.errors import UserError
from jaxaccel.models.adapter import abstract_variables, as_model, output_shape

FACTS = {"classes": 3, "channels": 1, "image_size": 4}
INPUTS = (jax.ShapeDtypeStruct((8, 4, 4, 1), jnp.float32),)


class Nnx(nnx.Module):
    def __init__(self, width=5, *, classes, rngs):
        self.dense = nnx.Linear(16, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(self.dense(x.reshape(x.shape[0], -1)))))


class Linen(linen.Module):
    classes: int = 3

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(5)(x.reshape(x.shape[0], -1))
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(self.classes)(x)


@pytest.fixture(
    params=[Nnx, partial(Nnx, width=7), Linen, Linen()], ids=["nnx", "partial", "linen", "instance"]
)
def model(request):
    return as_model(request.param, FACTS, INPUTS)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (8, 4, 4, 1))


def test_it_trains_like_a_module(model, x):
    params, state = jax.jit(model.init)(jax.random.key(0))
    key = jax.random.key(2)
    train, moved = jax.jit(partial(model.apply, train=True))(params, state, x, key=key)
    assert train.shape == (8, 3)
    # BatchNorm's statistics move in training only; dropout follows the key in training only.
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True))
    evaluated, kept = model.apply(params, state, x, key=key, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    again, _ = model.apply(params, state, x, key=jax.random.key(3), train=False)
    np.testing.assert_array_equal(evaluated, again)
    other, _ = model.apply(params, state, x, key=jax.random.key(3), train=True)
    assert (other != train).any()
    same, _ = jax.jit(partial(model.apply, train=True))(params, state, x, key=key)
    np.testing.assert_array_equal(same, train)


def test_the_functions_compute_what_the_module_computes(x):
    model = as_model(Nnx, FACTS, INPUTS)
    key = jax.random.key(0)
    params, state = model.init(key)
    module = Nnx(classes=3, rngs=nnx.Rngs(key))
    module.eval()
    outputs, _ = model.apply(params, state, x, key=key, train=False)
    np.testing.assert_allclose(outputs, module(x), rtol=1e-6)
    assert set(params) == {"dense", "norm", "head"}
    assert params["dense"]["kernel"].shape == (16, 5)


def test_shapes_cost_no_computation(model):
    params, _ = abstract_variables(model)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    assert output_shape(model, INPUTS).shape == (8, 3)


def test_a_model_that_does_not_take_the_data():
    model = as_model(Nnx, FACTS, INPUTS)
    with pytest.raises(UserError, match=r"does not take the data's batches of shape \(8, 5, 4, 1\)"):
        output_shape(model, (jax.ShapeDtypeStruct((8, 5, 4, 1), jnp.float32),))


def test_no_module_at_all():
    with pytest.raises(UserError, match="NNX or Linen"):
        as_model(lambda: 3, FACTS, INPUTS)
    with pytest.raises(UserError, match="cannot be made with classes=3"):
        as_model(lambda classes, depth: None, FACTS, INPUTS)
