"""Where a pipeline is written: nothing is lost that cannot be made again, and going on is going on with the same."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import jax
import pytest

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.compression import FineTune, LowRank, Pipeline, Prune, pipeline_directory
from jaxaccel.compression.receipts import Receipt
from jaxaccel.compression.training_steps import rename_option
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import as_model
from jaxaccel.training.directory_swap import Swap
from jaxaccel.training.recipe import Data
from jaxaccel.training.recipe_file import to_json

PRUNED = Pipeline({"prune": Prune(0.5)})


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A packed model, and a recipe like its own."""
    file = tmp_path_factory.mktemp("origin") / "small.safetensors"
    recipe = dataclasses.replace(
        ja.load_recipe("digits"), model=partial(models.ConvNet, widths=(4,), hidden=0)
    )
    facts, inputs = (
        {"classes": 10, "channels": 1, "image_size": 8},
        (jax.ShapeDtypeStruct((2, 8, 8, 1), "float32"),),
    )
    params, state = as_model(recipe.model, facts, inputs).init(jax.random.key(0))
    ja.params.save({"params": params, "model_state": state}, file)
    return file, recipe


@pytest.fixture
def compress(monkeypatch, origin):
    """`ja.compress` from that model, without the measurements."""
    fields = {field.name: 1 for field in dataclasses.fields(Receipt)}
    module = sys.modules["jaxaccel.compression.loop"]
    monkeypatch.setattr(module, "draw_pareto", lambda *_: None)
    monkeypatch.setattr(
        module,
        "make_receipt",
        lambda name, *_: Receipt(**fields | {"step": name, "scores": {"accuracy": 0.5}}),
    )

    def followed(pipeline, run, file=origin[0], training=origin[1], **options):
        return ja.compress(pipeline, file, training, run=run, **options)

    return followed


def steps(directory):
    return [row["step"] for row in json.loads((directory / "receipts.json").read_text())["receipts"]]


def test_what_cannot_begin_replaces_nothing(compress, origin, tmp_path):
    there, recipe = tmp_path / "r", origin[1]
    compress(PRUNED, there)
    wider = dataclasses.replace(recipe, model=partial(models.ConvNet, widths=(4, 4), hidden=0))
    inside = there / "1-prune.safetensors"
    before = {path: path.read_bytes() for path in there.iterdir()}
    for mistake, said in (
        ({"file": tmp_path / "nowhere"}, "nowhere"),
        ({"training": wider}, "another model"),
        ({"file": inside}, "lies in"),
        ({"pipeline": Pipeline({"thin": LowRank(where=("nowhere",))})}, "nowhere"),
    ):
        with pytest.raises(UserError, match=said):
            compress(**{"pipeline": PRUNED, "run": there, "overwrite": True} | mistake)
        assert {path: path.read_bytes() for path in there.iterdir()} == before
    compress(Pipeline({"less": Prune(0.2)}), there, overwrite=True)
    assert steps(there) == ["origin", "less"] and not inside.exists() and list(tmp_path.iterdir()) == [there]


def test_what_failed_early_is_not_in_the_way(compress, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        compress(Pipeline({"prune": Prune(0.5, where=("nowhere",))}), tmp_path / "r")
    assert steps(tmp_path / "r") == ["origin"]
    compress(PRUNED, tmp_path / "r")
    with pytest.raises(UserError, match="holds something already"):
        compress(PRUNED, tmp_path / "r")


def test_what_is_a_loss(tmp_path):
    there = tmp_path / "r"
    assert not pipeline_directory.holds_results(there)
    pipeline_directory.begin(Swap(there, pipeline_directory.RECORD, pipeline_directory.holds_results), {})
    (there / "tune").mkdir()
    (there / "tune" / "recipe.json").touch()  # of a fine-tuning that failed before its first checkpoint
    assert not pipeline_directory.holds_results(there)
    for own in ("1-prune.safetensors", "thesis", "tune/checkpoints/20"):
        (there / own).mkdir(parents=True)
        assert pipeline_directory.holds_results(there)
        (there / own).rmdir()
        assert not pipeline_directory.holds_results(there)
    (there / "pipeline.json").unlink()
    assert pipeline_directory.holds_results(there)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"non_finite": "skip"}, None),
        ({"lowering": "xla"}, None),
        ({"data": Data("digits", feed="stream")}, None),
        ({"data": Data("digits", eval_split="train")}, r"training\.data\.eval_split = test, now it is train"),
        ({"data": Data("mnist")}, r"training\.data\.name = digits"),
        ({"seed": 3}, r"training\.seed"),
    ],
)
def test_going_on_is_with_the_same(origin, tmp_path, change, said):
    pipeline_directory.begin(
        Swap(tmp_path / "r", pipeline_directory.RECORD, pipeline_directory.holds_results),
        {"training": to_json(origin[1])},
    )
    training = dataclasses.replace(origin[1], **change)
    now = {"training": to_json(training)}
    if said is None:
        assert pipeline_directory.resume_receipts(tmp_path / "r", now, training, {}) == []
        return
    with pytest.raises(UserError, match=said):
        pipeline_directory.resume_receipts(tmp_path / "r", now, training, {})


def test_a_pipeline_of_an_older_version_goes_on(origin, tmp_path):
    """Its tasks had another form, and it lacked options that have defaults."""
    pipeline = Pipeline({"prune": Prune(0.5), "thin": LowRank(rank=4)})
    now = json.loads(json.dumps({"pipeline": pipeline.as_json(), "training": to_json(origin[1])}))
    old = json.loads(json.dumps(now))
    del old["pipeline"]["prune"]["scope"], old["training"]["keep"], old["training"]["optimizer"]["ema"]
    old["training"]["task"]["kind"] = old["training"]["task"].pop("class")
    pipeline_directory.begin(
        Swap(tmp_path / "r", pipeline_directory.RECORD, pipeline_directory.holds_results), old
    )
    assert pipeline_directory.resume_receipts(tmp_path / "r", now, origin[1], pipeline.steps) == []
    other = Pipeline({"prune": Prune(0.5, scope="global"), "thin": LowRank(rank=4)})
    with pytest.raises(UserError, match=r"begun with pipeline\.prune\.scope = layer, now it is global"):
        pipeline_directory.resume_receipts(
            tmp_path / "r", now | {"pipeline": other.as_json()}, origin[1], other.steps
        )


def test_a_fine_tuning_that_fails_says_what_works_in_a_pipeline(compress, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise UserError(
            f"not finite: go on with {option('resume', True)} {option('non_finite', 'skip')}, or a lower "
            f"{option('optimizer.learning_rate')}"
        )

    monkeypatch.setattr("jaxaccel.compression.training_steps.train", fails)
    with pytest.raises(UserError) as error:
        compress(Pipeline({"fine_tune": FineTune()}), tmp_path / "r")
    assert error.value.as_flags() == (
        "fine_tune: not finite: go on with --resume --training.non-finite skip, or a lower --fine-tune.rate"
    )
    theirs = ("data.feed", "run", "distill.model", "sparse.every")
    ours = ["training.data.feed", "run", "a.teacher_model", "a.sparse.every"]
    assert [rename_option(path, "a") for path in theirs] == ours


def test_runs_of_other_names_lead_elsewhere(tmp_path):
    (tmp_path / "x-lr0.1").mkdir()
    assert pipeline_directory.default_directory(tmp_path / "x-lr0.1") == Path("runs/x-lr0.1-compressed")
    assert pipeline_directory.default_directory(Path("resnet56.th")) == Path("runs/resnet56-compressed")


def results(directory):
    """A pipeline that has come to a result."""
    pipeline_directory.begin(
        Swap(directory, pipeline_directory.RECORD, pipeline_directory.holds_results), {"batch": 1}
    )
    (directory / "1-prune.safetensors").write_text("weights")
    return {path: path.read_bytes() for path in directory.iterdir()}


def test_a_pipeline_stands_again_after_a_replacement_that_was_killed(tmp_path):
    there = tmp_path / "r"
    before = results(there)
    pipeline_directory.begin(
        Swap(there, pipeline_directory.RECORD, pipeline_directory.holds_results), {}
    )  # and no more: it was killed
    assert not (there / "1-prune.safetensors").exists()
    for _ in range(2):
        with pytest.raises(UserError, match="holds something already"):
            pipeline_directory.claim_directory(there, tmp_path, resume=False, overwrite=False).__enter__()
        assert {path: path.read_bytes() for path in there.iterdir()} == before
    assert list(tmp_path.iterdir()) == [there]


def test_two_do_not_write_to_one_pipeline(tmp_path):
    with (
        pipeline_directory.claim_directory(tmp_path / "r", tmp_path / "o", resume=False, overwrite=False),
        pytest.raises(UserError, match="r is in use"),
    ):
        pipeline_directory.claim_directory(
            tmp_path / "r", tmp_path / "o", resume=True, overwrite=False
        ).__enter__()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"receipts": [{"step": "origin"}]}', '{"receipts": 1}', "{}"]
)
def test_damaged_receipts_are_made_anew_and_a_damaged_pipeline_is_one_line(tmp_path, content, capsys):
    training = ja.load_recipe("digits")
    record = {"batch": 1, "training": to_json(training)}
    pipeline_directory.begin(
        Swap(tmp_path / "r", pipeline_directory.RECORD, pipeline_directory.holds_results), record
    )
    (tmp_path / "r" / "receipts.json").write_text(content)
    assert pipeline_directory.resume_receipts(tmp_path / "r", record, training, {}) == []
    assert "receipts.json is damaged: its steps are taken and measured again" in capsys.readouterr().out
    if not content.startswith("{}"):
        for damaged in ("[]", '{"batch": 1, "training": 3}'):
            (tmp_path / "r" / "pipeline.json").write_text(damaged)
            with pytest.raises(UserError, match=r"pipeline.json was not written by jaxaccel, or is damaged"):
                pipeline_directory.resume_receipts(tmp_path / "r", record, training, {})


def test_a_record_of_version_0_1_0_is_read_in_todays_names(tmp_path):
    (tmp_path / "route.json").write_text('{"route": {"fold": {"kind": "Fold"}}, "batch": 8}')
    assert pipeline_directory.find_record(tmp_path).name == "route.json"
    assert pipeline_directory.read_record(tmp_path) == {"pipeline": {"fold": {"kind": "Fold"}}, "batch": 8}
    (tmp_path / "pipeline.json").write_text('{"pipeline": {}}')
    assert pipeline_directory.read_record(tmp_path) == {"pipeline": {}}
