"""Pipelines from a trained model to smaller ones: receipts that are true, steps that compose, and going on."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

import jaxaccel as ja
import jaxaccel.compress as command
from jaxaccel import models
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
from jaxaccel.compression.pipeline import load
from jaxaccel.compression.stage import iterate_batches
from jaxaccel.core.arrays import CodebookArray, LowRankArray, QuantArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, its recipe and its result."""
    place = tmp_path_factory.mktemp("origin") / "small"
    recipe = dataclasses.replace(
        ja.load_recipe("digits"), model=partial(models.ConvNet, widths=(8, 16)), epochs=3, eval_every=3
    )
    return place, recipe, ja.train(recipe, run=place)


def kinds(tree, kind):
    return [x for x in jax.tree.leaves(tree, is_leaf=is_compressed) if isinstance(x, kind)]


def test_receipts_are_true(run, tmp_path):
    place, recipe, trained = run
    done = ja.compress(
        Pipeline({"prune": Prune(0.5), "fold": Fold(), "int8": Quantize()}), place, run=tmp_path / "r"
    )
    first, pruned, _, quantized = done.receipts
    assert first.scores["accuracy"] == pytest.approx(trained.summary["eval"]["accuracy"])
    params = trained.state.params
    assert first.parameters == first.nonzeros == sum(x.size for x in jax.tree.leaves(params))
    kernels = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
    assert pruned.parameters - pruned.nonzeros == pytest.approx(kernels / 2, abs=1)
    # Convolutions of 3x3 with their pooling, from the shapes of the network.
    assert first.flops == 2 * sum(ja.params.count_multiply_adds(done_call(run), params, images(1)).values())
    assert quantized.flops == first.flops
    for row in done.receipts:
        number = done.receipts.index(row)
        file = tmp_path / "r" / f"{number}-{row.step}.safetensors"
        assert row.packed_bytes == file.stat().st_size
        assert row.seconds_at_10_mbit == pytest.approx(file.stat().st_size * 8 / 1e7)
        assert row.latency_ms > 0 and row.throughput > 0 and (row.latency_gain is None) == (number == 0)
    assert quantized.bytes < first.bytes / 3
    assert kinds(done.stage.variables, QuantArray)
    # The accuracy of the last one, by hand: over the whole split, the filled-up batch counting as it is.
    right = total = 0
    for batch in iterate_batches(done.setting.test, recipe.task, 100):
        there = batch["mask"] > 0
        right += int((np.argmax(done.predict(batch), -1) == batch["label"])[there].sum())
        total += int(there.sum())
    assert total == len(done.setting.test)
    assert quantized.scores["accuracy"] == pytest.approx(right / total, abs=1e-6)
    assert (tmp_path / "r" / "pareto.png").stat().st_size > 5000
    written = json.loads((tmp_path / "r" / "receipts.json").read_text())["receipts"]
    assert written == [dataclasses.asdict(row) for row in done.receipts]


def done_call(run):
    _, _, trained = run
    return lambda params, x: trained.training.bind(params, trained.state.model_state)(x)


def images(count):
    return np.zeros((count, 8, 8, 1), np.float32)


@pytest.mark.slow
def test_everything_composes_and_goes_on(run, tmp_path, monkeypatch):
    place, _, _ = run
    tune = FineTune(epochs=0.2, teacher="origin")
    steps = {
        "channels": RemoveChannels(flops=0.7),
        "low_rank": LowRank(flops=0.8, where=("**/kernel",)),
        "prune": Prune(0.4),
        "fine_tune": tune,
        "fold": Fold(),
        "int8": Quantize(),
    }
    done = ja.compress(Pipeline(steps), place, run=tmp_path / "r", batch=64)
    rows = {row.step: row for row in done.receipts}
    assert rows["channels"].flops <= 0.7 * rows["origin"].flops
    assert rows["low_rank"].flops < rows["channels"].flops
    # Fine-tuning moved weights and no zero of them.
    before, after = (
        ja.params.load(tmp_path / "r" / f"{n}.safetensors")["params"] for n in ("3-prune", "4-fine_tune")
    )
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert all(((np.asarray(a) == 0) <= (np.asarray(b) == 0)).all() for a, b in pairs if a.ndim > 1)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    assert kinds(after, LowRankArray)
    assert rows["int8"].nonzeros <= 0.65 * rows["int8"].parameters

    # Stopped after the fine-tuning: what is done stays, what follows is the same, bit for bit.
    receipts = tmp_path / "r" / "receipts.json"
    record = json.loads(receipts.read_text())
    receipts.write_text(json.dumps(record | {"receipts": record["receipts"][:5]}))
    last = tmp_path / "r" / "6-int8.safetensors"
    content = last.read_bytes()
    last.unlink()
    monkeypatch.setattr(
        "jaxaccel.compression.training_steps.fine_tune", lambda *args: pytest.fail("trained again")
    )
    again = ja.compress(Pipeline(steps), place, run=tmp_path / "r", resume=True, batch=64)
    assert [row.step for row in again.receipts] == ["origin", *steps]
    assert last.read_bytes() == content
    with pytest.raises(UserError, match=r"begun with pipeline\.prune\.sparsity = 0\.4, now it is 0\.5"):
        ja.compress(Pipeline(steps | {"prune": Prune(0.5)}), place, run=tmp_path / "r", resume=True, batch=64)


@pytest.mark.slow
def test_stopped_within_a_fine_tuning_it_goes_on_as_if_nothing_had_been(run, tmp_path, monkeypatch, capsys):
    place, recipe, _ = run
    pipeline = Pipeline({"prune": Prune(0.5), "fine_tune": FineTune(epochs=0.5), "fold": Fold()})
    training = dataclasses.replace(recipe, steps_per_call=2)
    whole = ja.compress(pipeline, place, training, run=tmp_path / "whole")
    with monkeypatch.context() as signaled:
        signaled.setattr("jaxaccel.training.signals.StopSignal.asked", lambda self, call: call == 2)
        with pytest.raises(SystemExit) as stopped:
            ja.compress(pipeline, place, training, run=tmp_path / "r")
    assert stopped.value.code == 0
    assert "go on with: the same call with resume=True" in capsys.readouterr().out
    assert (tmp_path / "r" / "1-prune.safetensors").exists()
    assert not (tmp_path / "r" / "2-fine_tune.safetensors").exists()
    steps = {
        int(p.name) for p in (tmp_path / "r" / "fine_tune" / "checkpoints").iterdir() if p.name.isdigit()
    }
    assert len(steps) == 1 and max(steps) < 11
    ja.compress(pipeline, place, training, run=tmp_path / "r", resume=True)
    assert (tmp_path / "r" / whole.stage.file.name).read_bytes() == whole.stage.file.read_bytes()


@pytest.mark.slow
def test_what_examples_say_decides_what_goes(run, tmp_path):
    place, _, _ = run
    one_by_one = {
        "taylor": Prune(0.5, scope="global", criterion="taylor", examples=256),
        "wanda": Prune(0.55, criterion="wanda", examples=256),
        "low_rank": LowRank(flops=0.9, examples=256),
    }
    done = ja.compress(Pipeline(one_by_one), place, run=tmp_path / "r")
    sized = ja.compress(Pipeline({"prune": Prune(0.5, scope="global")}), place, run=tmp_path / "s").receipts[
        1
    ]
    origin, taylor, wanda, low_rank = done.receipts
    # By size alone whole layers go; what the loss says spares them.
    assert taylor.nonzeros == sized.nonzeros
    assert taylor.scores["accuracy"] > sized.scores["accuracy"] + 0.2
    assert wanda.nonzeros < taylor.nonzeros and low_rank.flops < origin.flops
    assert low_rank.scores["accuracy"] > sized.scores["accuracy"] + 0.1


@pytest.mark.slow
def test_shared_values_are_tuned_and_stay_shared(run, tmp_path):
    place, _, _ = run
    steps = {"prune": Prune(0.6), "share": Share(3), "fine_tune": FineTune(epochs=0.2)}
    done = ja.compress(Pipeline(steps), place, run=tmp_path / "r")
    shared, tuned = (
        kinds(ja.params.load(tmp_path / "r" / f"{n}.safetensors"), CodebookArray)
        for n in ("2-share", "3-fine_tune")
    )
    for a, b in zip(shared, tuned, strict=True):
        assert (np.asarray(a.indices) == np.asarray(b.indices)).all()
        assert a.codebook.size <= 8 and a.codebook[0] == b.codebook[0] == 0
        assert (np.asarray(a.codebook) != np.asarray(b.codebook)).any()
    assert done.receipts[-1].packed_bytes < done.receipts[0].packed_bytes / 5


@pytest.mark.slow
def test_a_student_learns_from_the_origin(run, tmp_path):
    place, _, _ = run
    steps = {
        "student": Student(model=partial(models.ConvNet, widths=(4, 8))),
        "learn": FineTune(epochs=5, rate=1.0, teacher="origin"),
    }
    done = ja.compress(Pipeline(steps), place, run=tmp_path / "r")
    origin, student, learned = done.receipts
    assert student.parameters < 0.6 * origin.parameters
    assert learned.scores["accuracy"] > student.scores["accuracy"] + 0.2
    with pytest.raises(UserError, match=r"student\.model"):
        ja.compress(Pipeline({"student": Student()}), place, run=tmp_path / "s")


@pytest.mark.slow
def test_a_student_whose_head_begins_with_zeros_learns_and_stays_pruned(run, tmp_path):
    mixer = partial(models.Mixer, width=16, depth=1, patch_size=4)
    steps = {
        "student": Student(model=mixer),
        "learn": FineTune(epochs=1, rate=1.0, teacher="origin"),
        "prune": Prune(0.5),
        "tune": FineTune(epochs=0.2),
    }
    ja.compress(Pipeline(steps), run[0], run=tmp_path / "r")
    one, two, three, four = (
        ja.params.load(tmp_path / "r" / f"{i}-{name}.safetensors")["params"]
        for i, name in enumerate(steps, 1)
    )
    heads = [np.asarray(params["head"]["kernel"]) for params in (one, two, three, four)]
    assert not heads[0].any() and heads[1].all()
    assert ((heads[2] == 0) == (heads[3] == 0)).all() and np.mean(heads[3] == 0) == 0.5
    assert (heads[2] != heads[3]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deep_compression", ["--prune.epochs", "0.5", "--fine-tune.epochs", "0.2"]),
        ("distill", ["--student.model", "ConvNet(widths=(4, 8))", "--learn.epochs", "1"]),
        ("low_rank", ["--fine-tune.epochs", "0.2"]),
        ("prune_and_int8", ["--prune.epochs", "0.5"]),
        ("thin", ["--fine-tune.epochs", "0.2"]),
    ],
)
def test_shipped_pipelines_from_the_command_line(run, tmp_path, name, words):
    assert command.main([str(run[0]), "--recipe", name, "--run", str(tmp_path / "r"), *words]) == 0
    receipts = json.loads((tmp_path / "r" / "receipts.json").read_text())["receipts"]
    assert [row["step"] for row in receipts] == ["origin", *load(name)[0].steps]
    assert receipts[-1]["packed_bytes"] < receipts[0]["packed_bytes"] / 2


def test_names_of_steps():
    with pytest.raises(UserError, match="names such as fine_tune"):
        Pipeline({"../x": Fold()})
    with pytest.raises(UserError, match="at least one"):
        Pipeline({})
