"""Runs in parts: smaller images or batches at first."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaccel import augment, models
from jaxaccel.data.order import Shuffled
from jaxaccel.errors import UserError
from jaxaccel.training import run_plan
from jaxaccel.training.recipe import Phases, Recipe

RECIPE = Recipe(name="parts", model=models.ConvNet, epochs=3, batch_size=10)


def plan(size=100, **phases):
    return run_plan.make_plan(dataclasses.replace(RECIPE, phases=Phases(**phases)), size)


def test_without_phases_a_run_is_one():
    whole = plan()
    assert [(p.start, p.stop, p.batch_size, p.image_size) for p in whole.phases] == [(0, 30, 10, 0)]
    assert whole.steps == 30 and whole.epoch(15) == 1.5


def test_phases_share_the_examples_of_the_run():
    parts = plan(at=(0.2, 0.6), batch_size=(5, 10, 20), image_size=(16, 24, 32))
    assert [(p.start, p.stop, p.before) for p in parts.phases] == [(0, 12, 0), (12, 24, 60), (24, 30, 180)]
    assert parts.examples(30) == 300 and parts.epoch(12) == 0.6
    assert [parts.phase(step).image_size for step in (0, 11, 12, 24, 99)] == [16, 16, 24, 32, 32]


def test_batches_of_all_phases_follow_without_a_gap():
    parts = plan(at=(0.2, 0.6), batch_size=(5, 10, 20))
    order = Shuffled.phased(7, 100, parts.phases)
    seen = np.concatenate([order(step)["index"] for step in range(parts.steps)])
    steady = Shuffled(7, 100, 10)
    np.testing.assert_array_equal(seen, np.concatenate([steady(step)["index"] for step in range(30)]))


def test_epochs_end_where_their_last_example_is_seen():
    assert plan().ends() == [10, 20, 30]
    assert plan(size=101).ends() == [11, 21, 30]  # the run ends three examples early
    assert plan(at=(0.5,), batch_size=(5, 10)).ends() == [20, 35, 45]
    assert run_plan.make_plan(dataclasses.replace(RECIPE, epochs=0.5), 100).ends() == [5]


def test_evaluations_and_calls_keep_to_the_phases():
    parts = plan(at=(0.5,), batch_size=(5, 10))
    cuts, calls = parts.timetable(0.5, lambda form, interval: 4, done=0)
    assert cuts == [10, 20, 30, 35, 40, 45]  # every 50 examples of 150 in steps of 5, then in steps of 10
    assert [step for call in calls for step in call] == list(range(45))
    assert all(parts.phase(call.start) == parts.phase(call.stop - 1) for call in calls)
    _, left = parts.timetable(0.5, lambda form, interval: 4, done=calls[9].start)
    assert left == calls[9:]


def test_a_batch_is_no_larger_than_the_data_set():
    thirty = run_plan.make_plan(dataclasses.replace(RECIPE, epochs=2, batch_size=128), 30)
    assert [(p.stop, p.batch_size) for p in thirty.phases] == [(2, 30)]
    assert thirty.epoch(2) == 2 and thirty.ends() == [1, 2]
    assert (
        "30 training examples are fewer than a batch of 128: steps take 30 at a time, 2 steps"
        in thirty.note(dataclasses.replace(RECIPE, epochs=2, batch_size=128))
    )
    over_four = run_plan.make_plan(dataclasses.replace(RECIPE, epochs=2, batch_size=128), 30, 4)
    assert [(p.stop, p.batch_size) for p in over_four.phases] == [(2, 28)]
    few = run_plan.make_plan(dataclasses.replace(RECIPE, epochs=2, batch_size=128), 3, 4)
    assert few.phases[0].batch_size == 4  # each device needs one
    parts = run_plan.make_plan(dataclasses.replace(RECIPE, phases=Phases((0.5,), batch_size=(10, 100))), 40)
    assert [p.batch_size for p in parts.phases] == [10, 40]


def test_few_steps_are_told():
    recipe = dataclasses.replace(RECIPE, epochs=2, batch_size=28)
    assert "2 epochs of 30 training examples are 2 steps of 28" in run_plan.make_plan(recipe, 30).note(recipe)
    assert run_plan.make_plan(RECIPE, 100).note(RECIPE) == ""


@pytest.mark.parametrize(
    "phases, says",
    [
        ({"at": (0.5, 0.5)}, "must increase"),
        ({"at": (1.0,)}, "must increase"),
        ({"at": (0.5,), "batch_size": (8,)}, "needs 2 numbers"),
        ({"image_size": (8, 16)}, "needs 1 numbers"),
    ],
)
def test_mistakes(phases, says):
    with pytest.raises(UserError, match=says):
        plan(**phases)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_averages_what_it_shrinks(dtype):
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 2)).astype(dtype)
    out = augment.resize(jax.random.key(0), {"image": jnp.asarray(image)}, size=4)["image"]
    assert out.shape == (3, 4, 4, 2) and out.dtype == dtype
    # A triangle of half-width 2 on the axis of the input, at the center of each output pixel.
    centers = 2 * np.arange(4) + 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(8) - centers[:, None]) / 2)
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("yi,xj,bijc->byxc", weights, weights, image.astype(np.float64))
    np.testing.assert_allclose(out, expected, atol=0.51 if dtype == np.uint8 else 1e-3)
    assert augment.resize(jax.random.key(0), {"image": image}, size=8)["image"] is image


@pytest.mark.slow
def test_a_run_in_parts_resumes_bit_for_bit(run_train, tmp_path):
    words = ("digits", "--model", "ConvNet(widths=(4,), hidden=0)", "--epochs", "2", "--steps-per-call", "1",
             "--phases.at", "0.5", "--phases.image-size", "6", "8", "--phases.batch-size", "32", "64")  # fmt: skip
    code, _, err = run_train(*words, "--run", "whole", "--keep", "9")
    assert code == 0, err
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["steps"] == 42 + 21 and whole["epochs"] == pytest.approx(2, abs=0.02)
    (tmp_path / "whole").rename(tmp_path / "cut")
    for step in (tmp_path / "cut" / "checkpoints").iterdir():
        if step.name.isdigit() and int(step.name) > 21:
            shutil.rmtree(step)
    code, _, err = run_train(*words, "--run", "cut", "--keep", "9", "--resume")
    assert code == 0, err
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["state_sha256"] == whole["state_sha256"]


def test_a_model_for_one_size_says_so(run_train):
    code, _, err = run_train("digits", "--phases.at", "0.5", "--phases.image-size", "4", "8")
    assert (code, err.count("\n")) == (2, 1) and "built for images" in err
