"""What a fine-tuning learns from: its teacher's own weights, whatever they have become."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.compression import FineTune, LowRank, RemoveChannels
from jaxaccel.compression.stage import Setting, stage_of_trained
from jaxaccel.compression.training_steps import make_recipe
from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.paths import with_leaves
from jaxaccel.errors import UserError
from jaxaccel.optim import Sparse
from jaxaccel.training import warm_start
from jaxaccel.training.recipe_file import from_json, to_json


@pytest.mark.slow
def test_a_thinned_origin_of_low_rank_teaches(tmp_path):
    factory = partial(models.ConvNet, widths=(8, 16), hidden=0)
    setting = Setting(dataclasses.replace(ja.load_recipe("digits"), model=factory), tmp_path, batch=4)
    model, inputs = setting.model(factory), setting.inputs(4)
    params, state = jax.jit(model.init)(jax.random.key(0))
    stage = stage_of_trained(factory, {"params": params, "model_state": state}, model)
    for step in (RemoveChannels(parameters=0.6, flops=None), LowRank(energy=0.6, flops=None)):
        stage = step.apply(stage, setting, "step")
    leaves = jax.tree.leaves(stage.variables, is_leaf=is_compressed)
    assert any(isinstance(x, LowRankArray) for x in leaves)
    ja.params.save(stage.variables, setting.origin)

    stage = dataclasses.replace(stage, file=setting.origin)
    recipe = make_recipe(stage, setting, "tune", FineTune(teacher="origin"), Sparse())
    recipe = from_json(to_json(recipe))
    teacher = warm_start.load_teacher(recipe, setting.known.values, setting.model(recipe.model), inputs)
    found = warm_start.load_teacher_weights(teacher, inputs)
    weights = with_leaves(
        teacher.blank(), {name.removeprefix("teacher/"): jax.numpy.asarray(x) for name, x in found.items()}
    )
    (x,) = setting.examples(4)[0]
    logits, _ = teacher.model.apply(
        weights["params"], weights["model_state"], x, key=jax.random.key(0), train=False
    )
    np.testing.assert_allclose(logits, stage.run(stage.variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 2.0}, "^FineTune: temperature is for a teacher: .* with teacher$"),
        ({"soft": 0.5}, "^FineTune: soft is for a teacher"),
        ({"teacher_model": models.resnet20}, "^FineTune: teacher_model is for a teacher"),
        ({"teacher": "origin", "teacher_model": models.resnet20}, "the origin knows its model"),
        ({"teacher": "origin", "soft": 1.5}, "^FineTune: soft must lie in"),
    ],
)
def test_nothing_asked_of_a_teacher_is_ignored(options, said):
    with pytest.raises(UserError, match=said):
        FineTune(**options)


def test_a_run_knows_its_model(tmp_path):
    setting, run = Setting(ja.load_recipe("digits"), tmp_path, batch=4), tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps({"recipe": to_json(setting.training)}))
    stage = stage_of_trained(models.resnet20, {"params": {}, "model_state": {}}, None)
    how = FineTune(teacher=str(run), teacher_model=models.resnet20)
    recipe = make_recipe(stage, setting, "tune", how, Sparse())
    with pytest.raises(UserError, match="is a run and knows its model"):
        warm_start.load_teacher(recipe, {}, None, ())
