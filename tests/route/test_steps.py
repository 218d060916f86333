"""Steps by themselves: which zeros stay, what options mean, and mistakes that are told before anything runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxaccel.optim import Sparse, sparse
from jaxaccel.route import FineTune, LowRank, Prune, Share
from jaxaccel.route.stage import Stage, trained


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def params():
    """A network whose head begins with zeros, as those of ViT and Mixer do."""
    body = {"kernel": normal(8, 8), "bias": jnp.zeros(8)}
    return {"embed": {"embedding": normal(16, 8)}, "body": body, "head": {"kernel": jnp.zeros((8, 4))}}


@pytest.fixture
def kept(monkeypatch):
    """How a fine-tuning keeps zeros after some steps, without the training."""
    monkeypatch.setattr("jaxaccel.route.steps.fine_tuned", lambda stage, setting, name, how, sparse: sparse)

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
    assert kept(trained(None, fresh().variables, None))[1] == Sparse()


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
    half = trained(None, pruned.variables, None)
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
    thin = LowRank(flops=None, rank=2, where=("body/kernel",))
    assert kept(fresh(), prune, thin)[1] == Sparse()
    assert kept(fresh(), thin, prune)[1].where == "{body/kernel/left,body/kernel/right}"
