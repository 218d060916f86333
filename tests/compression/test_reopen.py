"""A pipeline's directory opened again: each step's model as it was, without the data set and without writing."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.compression import (
    FineTune,
    Fold,
    Pipeline,
    Prune,
    Quantize,
    RemoveChannels,
    Student,
    reopen,
    stage,
)
from jaxaccel.core.interpret import is_compressed
from jaxaccel.deployment import trained
from jaxaccel.errors import UserError
from jaxaccel.optim import Sparse
from jaxaccel.training.file_names import FileNames


@pytest.fixture(scope="module")
def followed(digits_run, tmp_path_factory):
    steps = {
        "channels": RemoveChannels(flops=0.8),
        "prune": Prune(0.3),
        "fold": Fold(),
        "int8": Quantize(examples=64),
    }
    return ja.compress(
        Pipeline(steps), digits_run.directory, run=tmp_path_factory.mktemp("pipeline") / "small"
    )


@pytest.fixture(scope="module")
def images():
    return np.stack([example["image"] for example in ja.data.open("digits", "test").__getitems__(range(32))])


NOBODY = FileNames(Path("pipeline.json"), b"")


def no_data(monkeypatch):
    def gone(*args, **kwargs):
        raise UserError("the data set is gone")

    monkeypatch.setattr(stage, "open_splits", gone)
    monkeypatch.setattr(trained, "open_source", gone)


@pytest.mark.slow
def test_the_last_step_opens_as_it_was(followed, images, monkeypatch):
    no_data(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in followed.directory.rglob("*")}
    run = ja.load(followed.directory)
    np.testing.assert_allclose(run.predict(images), followed.predict(images), atol=1e-5)
    assert run.step == "int8" and run.metrics == followed.receipts[-1].scores
    assert any(is_compressed(x) for x in jax.tree.leaves(run.params, is_leaf=is_compressed))
    np.testing.assert_allclose(run.function(run.params, images), run.predict(images), atol=1e-4)
    assert before == {path: path.stat().st_mtime_ns for path in followed.directory.rglob("*")}


@pytest.mark.slow
def test_each_step_opens(followed, digits_run, images):
    origin = ja.load(followed.directory, which="origin")
    np.testing.assert_allclose(
        origin.predict(images), ja.load(digits_run.directory).predict(images), atol=1e-5
    )
    thin = ja.load(followed.directory / "1-channels.safetensors")
    assert thin.step == "channels" and thin.evaluate() == pytest.approx(followed.receipts[1].scores, abs=1e-6)
    with pytest.raises(
        UserError, match=r"no step 'foldd' that is done: there is origin, .*did you mean fold"
    ):
        ja.load(followed.directory, which="foldd")


@pytest.mark.slow
def test_the_pipeline_is_a_line(followed):
    assert "\n" not in repr(followed) and "channels, prune, fold, int8" in repr(followed)


@pytest.mark.slow
def test_missing_ranges_and_damage_are_told(followed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(followed.directory, copy)
    (copy / "int8-ranges.json").unlink()
    with pytest.raises(UserError, match=r"int8-ranges\.json is missing"):
        ja.load(copy)
    assert ja.load(copy, which="fold").step == "fold"
    (copy / "pipeline.json").write_text("{")
    with pytest.raises(UserError, match=r"pipeline\.json"):
        ja.load(copy)


def test_every_option_of_a_step_comes_back():
    steps = {
        "tune": FineTune(epochs=2, sparse=Sparse(0.5, where="**/kernel")),
        "student": Student(model=ja.models.ConvNet),
        "int8": Quantize(where=("**/kernel",)),
    }
    written = json.loads(json.dumps(Pipeline(steps).as_json()))
    assert {name: reopen._step(name, values, NOBODY) for name, values in written.items()} == steps
    with pytest.raises(UserError, match="own is a Mine, which is no step of jaxaccel"):
        reopen._step("own", {"kind": "Mine"}, NOBODY)
