"""Steps by themselves: which zeros stay, what options mean, and mistakes that are told before anything runs."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxaccel.compression import (
    FineTune,
    Fold,
    LowRank,
    Pipeline,
    Prune,
    Quantize,
    RemoveChannels,
    Share,
    Student,
)
from jaxaccel.compression.stage import Stage, stage_of_trained
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.models.bound import Bound
from jaxaccel.optim import Sparse, sparse
from jaxaccel.tasks import Task
from jaxaccel.tasks.metrics import Mean


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def params():
    """A network whose head begins with zeros, as those of ViT and Mixer do."""
    body = {"kernel": normal(8, 8), "bias": jnp.zeros(8)}
    return {"embed": {"embedding": normal(16, 8)}, "body": body, "head": {"kernel": jnp.zeros((8, 4))}}


@pytest.fixture
def kept(monkeypatch):
    """How a fine-tuning keeps zeros after some steps, without the training."""
    monkeypatch.setattr(
        "jaxaccel.compression.training_steps.fine_tune", lambda stage, setting, name, how, sparse: sparse
    )

    def after(stage, *steps, tune=None):
        for step in steps:
            stage = step.apply(stage, None, "step")
            stage = dataclasses.replace(stage, pruned=(*stage.pruned, *step.prunes))
        return stage.variables["params"], (tune or FineTune()).apply(stage, None, "tune")

    return after


def fresh():
    return Stage(None, {"params": params(), "model_state": {}}, lambda v, x: x)


def test_what_begins_with_zeros_trains(kept):
    assert kept(fresh())[1] == Sparse()
    assert kept(stage_of_trained(None, fresh().variables, None))[1] == Sparse()


def test_what_was_pruned_stays_zero_and_nothing_else(kept):
    pruned, how = kept(fresh(), Prune(0.5, where=("**/embedding",)))
    tx = sparse(optax.sgd(0.1), how, steps=10)
    grads = jax.tree.map(jnp.ones_like, pruned)
    updates, _ = tx.update(grads, tx.init(pruned), pruned)
    moved = optax.apply_updates(pruned, updates)
    zero, left = pruned["embed"]["embedding"] == 0, moved["embed"]["embedding"]
    assert zero.mean() == 0.5 and (left[zero] == 0).all() and (left[~zero] != 0).all()
    assert (moved["head"]["kernel"] != 0).all()


def test_zeros_of_a_training_and_of_the_origin_stay(kept):
    pruned = Prune(0.5, where=("body/*",)).apply(fresh(), None, "prune")
    half = stage_of_trained(None, pruned.variables, None)
    assert half.pruned == ("body/kernel",)
    assert kept(half)[1] == Sparse(method="fixed", where="{body/kernel}")
    # As a training with pruning says that it did, and as this one itself says.
    own = Sparse(0.5, method="gradual", where="body/**")
    assert FineTune(sparse=own).prunes == ("body/**",) and FineTune().prunes == ()
    assert kept(half, tune=FineTune(sparse=own))[1] == own


def test_zeros_that_went_are_not_looked_for(kept):
    prune = Prune(0.5, where=("body/kernel",))
    assert kept(fresh(), prune, Share(2, where=("body/kernel",)))[1] == Sparse()
    # Factors of what was pruned are dense; those that are pruned stay zero.
    thin = LowRank(rank=2, where=("body/kernel",))
    assert kept(fresh(), prune, thin)[1] == Sparse()
    assert kept(fresh(), thin, prune)[1].where == "{body/kernel/left,body/kernel/right}"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            RemoveChannels,
            {"flops": 0.5, "latency": 0.6},
            "one of flops, parameters, latency, not flops=0.5 and",
        ),
        (RemoveChannels, {"parameters": 1.5}, r"parameters must lie in \(0, 1\]"),
        (RemoveChannels, {"multiple": 0}, "multiple must be at least 1"),
        (RemoveChannels, {"examples": 0}, "examples must be at least 1"),
        (RemoveChannels, {"least": 1.0}, r"least must lie in \[0, 1\)"),
        (Prune, {"sparsity": 1.2}, "sparsity must lie"),
        (Prune, {"sparsity": 0.8, "pattern": "2:4"}, "2:4 is a sparsity of 0.5, not 0.8"),
        (Prune, {"pattern": "4:2"}, "pattern must be"),
        (Prune, {"examples": 0}, "examples must be at least 1"),
        (LowRank, {"energy": 0.9, "rank": 3}, "one of flops, energy, rank"),
        (LowRank, {"energy": 0.0}, r"energy must lie in \(0, 1\]"),
        (LowRank, {"rank": 0}, "rank must be at least 1"),
        (Share, {"bits": 9}, r"bits must lie in \[1, 8\]"),
        (Quantize, {"bits": 5}, "bits must be 4 or 8"),
        (Quantize, {"examples": 0}, "examples must be at least 1"),
        (FineTune, {"epochs": 0}, "epochs must be above 0"),
        (FineTune, {"warmup": 2}, "warmup must lie in"),
        (FineTune, {"sparse": Sparse(where="head/**")}, "sparse.where is for pruning"),
    ],
)
def test_options_that_cannot_be(kind, options, said):
    with pytest.raises(UserError, match=said):
        kind(**options)


@pytest.mark.parametrize(
    ("step", "said"),
    [(Prune(pattern="3:7"), "3:7 does not divide"), (LowRank(rank=2, where=("nowhere/**",)), "nowhere")],
)
def test_options_without_a_meaning_for_the_model(step, said):
    with pytest.raises(UserError, match=said):
        step.apply(fresh(), None, "step")


@pytest.mark.parametrize("kind", [RemoveChannels, LowRank])
def test_defaults_give_way(kind):
    assert kind().budget == {"flops": 0.5}
    assert kind(flops=0.7).budget == {"flops": 0.7}
    other = "latency" if kind is RemoveChannels else "energy"
    assert kind(**{other: 0.9}).budget == {other: 0.9}


def test_a_pattern_decides_the_sparsity():
    shares = {}
    for step in (Prune(), Prune(0.5), Prune(pattern="1:4"), Prune(0.75, "1:4"), Prune(pattern="block:2x2")):
        pruned = step.apply(fresh(), None, "prune").variables["params"]["body"]["kernel"]
        shares[step] = float((pruned == 0).mean())
    assert list(shares.values()) == pytest.approx([0.8, 0.5, 0.75, 0.75, 0.8], abs=0.02)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [Fold(), FineTune()],
            "two cannot come after one: what was folded or quantized is not trained any more",
        ),
        ([Quantize(), FineTune()], "not trained any more"),
        ([Share(2), Quantize()], "codebook"),
        ([Share(2), Fold()], "floating point"),
        ([LowRank(), RemoveChannels()], "dense weights"),
        ([Student(), Fold(), RemoveChannels()], "three cannot come after two"),
    ],
)
def test_orders_that_cannot_be(steps, said):
    with pytest.raises(UserError, match=said):
        Pipeline(dict(zip(("one", "two", "three"), steps, strict=False)))


def test_a_student_is_another_model():
    Pipeline({"fold": Fold(), "student": Student(), "learn": FineTune(), "int8": Quantize()})


def test_an_origin_that_shares_values_is_not_quantized():
    shared = Share(2).apply(fresh(), None, "share")
    with pytest.raises(UserError, match=r"int8: .* codebook"):
        Quantize().apply(shared, None, "int8")


class Scaled(nnx.Module):
    """A product with a factor that can be folded, and a method that does the same."""

    def __init__(self, *, rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.scale = nnx.Param(jnp.full(4, 3.0))

    def __call__(self, x):
        return self.layer(x) * self.scale[...]

    def encode(self, x):
        return self(x)


class ByMethod(Task):
    method: str = ""

    def inputs(self, batch):
        return (batch["x"],)

    def loss(self, outputs, batch):
        value = Mean.of(jnp.square(outputs).mean(1), batch["mask"])
        return value, {"accuracy": value}

    def predict(self, apply, batch):
        return apply.encode(batch["x"]) if self.method else apply(batch["x"])


@pytest.mark.parametrize("method", ["encode", ""])
def test_fold_leaves_a_model_alone_whose_methods_the_task_needs(method, caplog):
    shapes = {"x": jax.ShapeDtypeStruct((1, 4), jnp.float32), "mask": jax.ShapeDtypeStruct((1,), jnp.float32)}
    model = as_model(Scaled, {}, (shapes["x"],))
    params, state = model.init(jax.random.key(0))
    stage = stage_of_trained(Scaled, {"params": params, "model_state": state}, model)
    task = ByMethod()
    object.__setattr__(task, "method", method)
    problem = types.SimpleNamespace(batch_shape=lambda size: shapes)
    setting = types.SimpleNamespace(task=task, problem=problem, inputs=lambda size: (shapes["x"],))
    with caplog.at_level("INFO", logger="jaxaccel"):
        folded = Fold().apply(stage, setting, "fold")
    assert (folded is stage) == bool(method)
    assert ("the task decodes with its encode" in caplog.text) == bool(method)
    x = jnp.ones((2, 4))
    want = stage.run(stage.variables, x)
    np.testing.assert_allclose(task.predict(Bound(folded.run, folded.variables), {"x": x}), want, rtol=1e-5)
