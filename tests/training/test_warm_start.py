"""Runs that start from the weights of a file, or of another run."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.models.adapter import abstract_variables, as_model
from jaxaccel.optim import Optimizer
from jaxaccel.tasks import ImageClassification
from jaxaccel.tasks.metrics import ACCURACY
from jaxaccel.training import warm_start
from jaxaccel.training.teacher import Distill, Teacher


@pytest.fixture(scope="module")
def recipe():
    """Steps that move nothing, so that what a run ends with is what it began with."""
    return dataclasses.replace(
        ja.load_recipe("digits"), model=partial(models.ResNetCifar, 8, width=4), epochs=0.1, augment=(),
        optimizer=Optimizer("sgd", 0.0),
    )  # fmt: skip


def theirs(classes):
    """The network with `classes` outputs under PyTorch's names."""
    rng = np.random.default_rng(0)

    def norm(name, n):
        return {
            f"{name}.{part}": rng.uniform(0.5, 1.5, n)
            for part in ("weight", "bias", "running_mean", "running_var")
        }

    found = {"conv1.weight": rng.normal(size=(4, 1, 3, 3))} | norm("bn1", 4)
    for i, (before, width) in enumerate(((4, 4), (4, 8), (8, 16))):
        for j, inputs in ((1, before), (2, width)):
            found[f"layer{i + 1}.0.conv{j}.weight"] = rng.normal(size=(width, inputs, 3, 3))
            found |= norm(f"layer{i + 1}.0.bn{j}", width)
    found |= {"linear.weight": rng.normal(size=(classes, 16)), "linear.bias": rng.normal(size=classes)}
    return {name: np.ascontiguousarray(x, np.float32) for name, x in found.items()}


@pytest.mark.parametrize("classes", [10, 3])
def test_a_file(recipe, tmp_path, classes, capsys):
    arrays = theirs(classes)
    save_file(arrays, tmp_path / "weights")
    result = ja.train(recipe, run=tmp_path / "run", init_from=tmp_path / "weights")
    params = result.state.params
    np.testing.assert_array_equal(
        params["stages"][2][0]["conv2"]["kernel"].transpose(3, 2, 0, 1), arrays["layer3.0.conv2.weight"]
    )
    same = params["head"]["kernel"].shape == (16, classes)
    assert same == (classes == 10)
    assert not same or (arrays["linear.weight"] == np.asarray(params["head"]["kernel"]).T).all()
    said = capsys.readouterr().out
    assert f"starting from the weights of {tmp_path / 'weights'}" in said
    assert ("new: head/bias, head/kernel" in said) == (classes == 3)


def test_a_run_of_another_model(recipe, tmp_path):
    ja.train(recipe, run=tmp_path / "first")
    narrow = dataclasses.replace(recipe, model=partial(models.ResNetCifar, 8, width=6))
    with pytest.raises(ja.UserError, match=r"is of another model: .* has shape"):
        ja.train(narrow, run=tmp_path / "second", init_from=tmp_path / "first")


def test_a_file_of_another_model(recipe, tmp_path):
    save_file({"a.weight": np.zeros((3, 3), np.float32)}, tmp_path / "weights")
    with pytest.raises(ja.UserError, match=r"has no weights for \d+ layers of the model"):
        ja.train(recipe, run=tmp_path / "run", init_from=tmp_path / "weights")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_the_weights_of_a_larger_model(tmp_path, packed):
    file, inputs = tmp_path / "weights", (jax.ShapeDtypeStruct((2, 8, 8, 1), "float32"),)
    small = as_model(partial(models.ResNetCifar, 8, width=4), {"classes": 10, "channels": 1}, inputs)
    if packed:
        params, state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_variables(small))
        params["stages"][2][1] = params["stages"][2][0]
        ja.params.save({"params": params, "model_state": state}, file)
    else:
        save_file(theirs(10) | {"layer3.1.conv1.weight": np.zeros((9, 9, 3, 3), np.float32)}, file)
    more = "params/stages/2/1/conv1/kernel, .*, \\.\\.\\." if packed else "layer3.1.conv1"
    with pytest.raises(ja.UserError, match=f"another model: it has {more}, which the model lacks; name the"):
        warm_start.load_start(file, small, inputs, ACCURACY)
    teacher = Teacher(small, ImageClassification(), Distill(file))
    with pytest.raises(ja.UserError, match=f"another model: it has {more}, which the model lacks; name the"):
        warm_start.load_teacher_weights(teacher, inputs)


def test_a_new_head_and_a_layer_too_many(tmp_path):
    inputs = (jax.ShapeDtypeStruct((2, 8, 8, 1), "float32"),)
    small = as_model(partial(models.ResNetCifar, 8, width=4), {"classes": 10, "channels": 1}, inputs)
    save_file(theirs(3) | {"layer3.1.conv1.weight": np.zeros((9, 9, 3, 3), np.float32)}, tmp_path / "weights")
    with pytest.raises(ja.UserError, match=r"it has layer3.1.conv1, linear, which the model lacks"):
        warm_start.load_start(tmp_path / "weights", small, inputs, ACCURACY)


def test_only_the_head_moves(recipe, tmp_path):
    frozen = dataclasses.replace(recipe, optimizer=Optimizer("adam", 0.1, freeze=("stem/**", "stages/**")))
    save_file(theirs(10), tmp_path / "weights")
    result = ja.train(frozen, run=tmp_path / "run", init_from=tmp_path / "weights")
    params, arrays = result.state.params, theirs(10)
    np.testing.assert_array_equal(
        params["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1), arrays["conv1.weight"]
    )
    assert (arrays["linear.weight"] != np.asarray(params["head"]["kernel"]).T).all()
    assert {x.shape for x in jax.tree.leaves(result.state.opt_state)} == {(), (16, 10), (10,)}
