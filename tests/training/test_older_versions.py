"""What version 0.1.0 wrote still opens, goes on and is compressed."""

import json
import shutil
from pathlib import Path

import jax
import pytest
from conftest import FIXTURES

import jaxaccel as ja
from jaxaccel.training.saved_checkpoints import CHECKPOINTS

WRITTEN = FIXTURES / "runs" / "whole"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The runs, where their records say that they are."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(WRITTEN, "runs"))


def read(path):
    return json.loads(path.read_text())


def test_a_finished_run_opens(runs):
    result, trained = read(runs / "trained" / "result.json"), ja.load(runs / "trained")
    assert trained.evaluate() == pytest.approx(result["eval"], abs=1e-4)
    assert sum(x.size for x in jax.tree.leaves(trained.params["params"])) == result["parameters"]
    assert trained.class_names == tuple("0123456789")
    again = ja.train(trained.recipe, run=runs / "trained", resume=True)
    assert again.summary == result  # and not a step more


def test_a_run_that_was_killed_goes_on(runs):
    assert [p.name for p in (runs / "stopped" / CHECKPOINTS).iterdir() if p.name.isdigit()] == ["21"]
    recipe = ja.load_recipe(str(runs / "stopped"))
    done = ja.train(recipe, run=runs / "stopped", resume=True).summary
    whole = read(runs / "trained" / "result.json")
    assert done["finished"] and done["steps"] == whole["steps"]
    assert done["eval"]["loss"] == pytest.approx(whole["eval"]["loss"], rel=1e-2)
    rows = [json.loads(line) for line in (runs / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [21, 42, 63, 84]


def test_a_compressed_model_opens_and_its_file_too(runs):
    directory = runs / "trained-compressed"
    rows = read(directory / "receipts.json")["receipts"]
    for which in ("prune", "fold", "int8"):
        score = next(row["scores"] for row in rows if row["step"] == which)
        assert ja.load(directory, which=which).evaluate() == pytest.approx(score, abs=5e-3)
    packed = ja.params.load(directory / "3-int8.safetensors")
    is_quantized = lambda x: isinstance(x, ja.arrays.QuantArray)  # noqa: E731
    assert any(map(is_quantized, jax.tree.leaves(packed, is_leaf=is_quantized)))
