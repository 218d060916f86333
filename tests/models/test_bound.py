"""Methods of a model and explicit caches: what a task decodes with, however the model is transformed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxaccel as ja
from jaxaccel import augment
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model, inference
from jaxaccel.models.bound import Bound, find_methods
from jaxaccel.models.packed import packed
from jaxaccel.tasks import Task
from jaxaccel.tasks.metrics import Mean
from jaxaccel.training.evaluation import compile_predict
from jaxaccel.training.step import Training

WIDTH, STEPS, ROWS = 16, 6, 4
INPUTS = (jax.ShapeDtypeStruct((ROWS, STEPS, 8), jnp.float32),)


class Recurrent(nnx.Module):
    """A state that each step adds to: the whole at once by `__call__`, or a step at a time."""

    def __init__(self, *, rngs):
        self.bring = nnx.Linear(8, WIDTH, rngs=rngs)
        self.move = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        states, memory = [], jnp.zeros((len(x), WIDTH))
        for t in range(x.shape[1]):
            memory, out = self.step(memory, self.encode(x)[:, t])
            states.append(out)
        return jnp.stack(states, 1)

    def encode(self, x):
        return self.bring(x)

    def step(self, memory, encoded):
        memory = jnp.tanh(encoded + self.move(memory))
        return memory, memory


class LinenRecurrent(linen.Module):
    def setup(self):
        self.bring, self.move = linen.Dense(WIDTH), linen.Dense(WIDTH)
        self.dropout = linen.Dropout(0.5)

    def __call__(self, x, train):
        states, memory = [], jnp.zeros((len(x), WIDTH))
        for t in range(x.shape[1]):
            memory, out = self.step(memory, self.encode(x, train=train)[:, t])
            states.append(out)
        return jnp.stack(states, 1)

    def encode(self, x, train):
        return self.dropout(self.bring(x), deterministic=not train)

    def step(self, memory, encoded):
        memory = jnp.tanh(encoded + self.move(memory))
        return memory, memory


class Decoding(Task):
    """Predicts by a loop over steps with a cache."""

    def inputs(self, batch):
        return (batch["x"],)

    def loss(self, outputs, batch):
        value = Mean.of(jnp.square(outputs).mean((1, 2)), batch["mask"])
        return value, {"accuracy": value}

    def predict(self, apply, batch):
        encoded = apply.encode(batch["x"])

        def step(carry):
            t, memory, states = carry
            memory, out = apply.step(memory, encoded[:, t])
            return t + 1, memory, states.at[:, t].set(out)

        start = (0, jnp.zeros((len(encoded), WIDTH)), jnp.zeros((*encoded.shape[:2], WIDTH)))
        return jax.lax.while_loop(lambda carry: carry[0] < encoded.shape[1], step, start)[2]


MODELS = {"nnx": Recurrent, "linen": LinenRecurrent()}
BATCH = {
    "x": np.random.default_rng(0).normal(size=INPUTS[0].shape).astype(np.float32),
    "mask": np.ones(ROWS, np.float32),
}


def initialized(kind):
    model = as_model(MODELS[kind], {}, INPUTS)
    params, state = model.init(jax.random.key(1))
    return model, {"params": params, "model_state": state}


@pytest.mark.parametrize("kind", MODELS)
def test_steps_with_a_cache_are_the_whole(kind):
    model, variables = initialized(kind)
    run = inference(model)
    found = compile_predict(Decoding(), run)(variables, BATCH)
    np.testing.assert_allclose(found, run(variables, BATCH["x"]), atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("transformation", "change", "bound"),
    [
        (ja.bfloat16, lambda p: p, 0.02),
        (ja.int8, ja.quantize, 0.05),
        (ja.transforms.compressed, partial(ja.low_rank, rank=4), 2.0),
        (ja.retarget, lambda p: p, 1e-6),
    ],
)
def test_methods_are_transformed_as_the_call_is(kind, transformation, change, bound):
    model, variables = initialized(kind)
    call, params = inference(model), change(variables["params"])

    def f(params, *inputs, **method):
        return call(variables | {"params": params}, *inputs, **method)

    found = compile_predict(Decoding(), transformation(f))(params, BATCH)
    want = transformation(f)(params, BATCH["x"])
    np.testing.assert_allclose(found, want, atol=max(min(bound, 0.05) / 5, 1e-6))
    dense = f(variables["params"], BATCH["x"])
    error = float(jnp.abs(found - dense).max())
    assert error < bound
    assert (error > 1e-5) == (transformation is not ja.retarget)


def test_int8_products_of_methods_are_compiled_in():
    model, variables = initialized("nnx")
    run = ja.int8(inference(model))
    lowered = compile_predict(Decoding(), run).lower(ja.quantize(variables), BATCH)
    assert lowered.as_text().count("xi32>") >= 2


@pytest.mark.parametrize("kind", MODELS)
def test_training_binds_methods(kind):
    model, variables = initialized(kind)
    rate = optax.constant_schedule(0.1)
    plain = Training(model, Decoding(), tx=optax.sgd(rate), schedule=rate, augment=augment.chain())
    want = inference(model)(variables, BATCH["x"])
    for training, bound in ((plain, 1e-6), (Training(**vars(plain) | {"precision": "bfloat16"}), 0.02)):
        found = training.predict(variables["params"], variables["model_state"], BATCH)
        np.testing.assert_allclose(found, want, atol=bound)
        scores = training.evaluate(variables["params"], variables["model_state"], BATCH)
        np.testing.assert_allclose(scores["accuracy"].value(), np.square(found).mean(), rtol=0.02)


def test_packed_models_have_the_methods_of_their_own(tmp_path):
    _, variables = initialized("nnx")
    ja.params.save(
        variables | {"params": ja.low_rank(variables["params"], rank=4)}, tmp_path / "thin.safetensors"
    )
    thin = as_model(partial(packed, file=str(tmp_path / "thin.safetensors"), model=Recurrent), {}, INPUTS)
    params, state = thin.init(jax.random.key(0))
    held = {"params": params, "model_state": state}
    found = compile_predict(Decoding(), inference(thin))(held, BATCH)
    np.testing.assert_allclose(found, inference(thin)(held, BATCH["x"]), atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_without_the_method_is_told(kind):
    model, variables = initialized(kind)
    with pytest.raises(UserError, match=r"a model with a method 'decode', and \w*Recurrent has none"):
        Bound(inference(model), variables).decode(BATCH["x"])


@pytest.mark.parametrize("kind", MODELS)
def test_the_methods_that_a_task_needs_are_found(kind):
    model, variables = initialized(kind)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in BATCH.items()}

    def traced(use):
        return find_methods(use, inference(model), variables, batch)

    assert traced(Decoding().predict) == ("encode", "step")
    assert traced(lambda apply, batch: apply(batch["x"])) == (), "the call alone is no method"
