"""`python -m jaxaccel.compress`: words to a pipeline, mistakes to one line."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxaccel as ja
import jaxaccel.compress as command
from jaxaccel.compression import Pipeline
from jaxaccel.compression.pipeline import list_pipelines, load
from jaxaccel.errors import UserError, option
from jaxaccel.training import run_directory


@pytest.fixture
def followed(monkeypatch):
    """What `compress` is called with."""
    calls = []
    monkeypatch.setattr(command, "compress", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.fixture
def origin(tmp_path):
    """The directory of a run, without weights."""
    place = tmp_path / "runs" / "digits"
    with run_directory.claim_run(place, ja.load_recipe("digits")) as claim:
        claim.begin()
    return place


def test_flags_reach_their_step(followed, origin):
    words = ["--recipe", "deep_compression", "--prune.epochs", "3", "--prune.sparse.sparsity", "0.9"]
    assert (
        command.main([str(origin), *words, "--share.bits=5", "--training.batch-size", "32", "--batch", "7"])
        == 0
    )
    (pipeline, place, training), options = followed[0]
    assert list(pipeline.steps) == ["prune", "share", "fine_tune"]
    assert pipeline.steps["prune"].epochs == 3 and pipeline.steps["prune"].sparse.sparsity == 0.9
    assert pipeline.steps["share"].bits == 5 and pipeline.steps["fine_tune"].epochs == 1
    assert place == origin and training.batch_size == 32 and options["batch"] == 7


def test_alternatives_take_the_place_of_defaults(followed, origin, tmp_path):
    own = tmp_path / "pruned.py"
    own.write_text(
        "from jaxaccel.compression import *\ndef pipeline():\n    return Pipeline({'prune': Prune()})\n"
    )
    for recipe, *words in (
        ("thin", "--channels.latency", "0.5"),
        ("low_rank", "--low-rank.energy", "0.9"),
        (str(own), "--prune.pattern", "2:4"),
    ):
        assert command.main([str(origin), "--recipe", recipe, *words]) == 0
    thin, low_rank, pruned = (args[0].steps for args, _ in followed)
    assert thin["channels"].budget == {"latency": 0.5} and thin["channels"].multiple == 8
    assert low_rank["low_rank"].budget == {"energy": 0.9}
    assert pruned["prune"].sparsity is None and pruned["prune"].pattern == "2:4"


def test_a_file_goes_by_a_recipe_like_it(followed, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, file)
    assert (
        command.main(
            [str(file), "--like", "cifar10_resnet20", "--recipe=int8", "--training.model", "resnet56"]
        )
        == 0
    )
    (_, _, training), _ = followed[0]
    assert training.data.name == "cifar10" and training.model is ja.models.resnet56
    with pytest.raises(UserError, match="with training=RECIPE, cifar10_resnet20 for instance"):
        ja.compress(load("int8")[0], file, run=tmp_path / "r")
    with pytest.raises(UserError, match="no run and no file"):
        ja.compress(load("int8")[0], tmp_path / "nowhere", run=tmp_path / "r")


def test_every_pipeline_can_be_made(capsys, followed, origin):
    assert command.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name in list_pipelines():
        pipeline, module = load(name)
        assert isinstance(pipeline, Pipeline) and name in said and module.__doc__
        assert json.loads(json.dumps(pipeline.as_json()))
        assert command.main([str(origin), "--recipe", name]) == 0


def test_a_file_of_ones_own(tmp_path, followed, origin):
    own = tmp_path / "mine.py"
    own.write_text(
        "from jaxaccel.compression import *\ndef pipeline():\n    return Pipeline({'fold': Fold()})\n"
    )
    assert command.main([str(origin), "--recipe", str(own)]) == 0
    assert list(followed[0][0][0].steps) == ["fold"]
    own.write_text("def pipeline():\n    return 3\n")
    with pytest.raises(UserError, match=r"must define pipeline\(\)"):
        command.main([str(origin), "--recipe", str(own)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "deep_compresion"], "did you mean deep_compression"),
        (["--recipe"], "--recipe needs a name"),
        (["--prun.sparsity", "0.3"], "unknown argument --prun.sparsity; did you mean --prune"),
        (["--prune.epochs", "many"], "epochs"),
        (["--recipe", "nowhere.py"], "no recipe file nowhere.py"),
        (["--training.model", "resnet2000"], "resnet20"),
        (["--int8.bits", "5"], "invalid choice '5' for argument '--int8.bits'"),
        (["--recipe", "thin", "--channels.multiple", "0"], "--channels.multiple must be at least 1, got 0"),
        (["--training.distill.teacher", "x"], r"--training\.distill changes nothing: a fine-tuning"),
        (["--training.optimizer.ema", "0.9"], r"--training\.optimizer\.ema changes nothing"),
    ],
)
def test_mistakes(origin, words, said):
    with pytest.raises(UserError) as caught:
        command.main([str(origin), *words])
    assert re.search(said, caught.value.as_flags())


@pytest.mark.parametrize(
    ("path", "flag"),
    [
        ("training", "--like"),
        ("data.dir", "--training.data.dir"),
        ("training.data.dir", "--training.data.dir"),
        ("int8.bits", "--int8.bits"),
        ("overwrite", "--overwrite"),
    ],
)
def test_a_mistake_found_later_names_flags_of_this_command(origin, monkeypatch, path, flag):
    def fails(*_, **__):
        raise UserError(f"give another {option(path)}")

    monkeypatch.setattr(command, "compress", fails)
    with pytest.raises(UserError) as caught:
        command.main([str(origin), "--recipe", "int8"])
    assert caught.value.as_flags() == f"give another {flag}"


def test_without_an_origin():
    with pytest.raises(UserError, match="name a run or a file"):
        command.main(["--recipe", "int8"])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        command.main(["--recipe", "prune_and_int8", "--help"])
    said = capsys.readouterr().out
    for word in (
        "--prune.sparse.sparsity",
        "--int8.bits",
        "--training.data.downloads",
        "magnitude pruning",
        "ORIGIN",
    ):
        assert word.lower() in said.lower()


def test_what_is_there_is_not_lost(tmp_path, origin):
    place = tmp_path / "there"
    place.mkdir()
    (place / "thesis.txt").write_text("all of it")
    pipeline = load("int8")[0]
    with pytest.raises(UserError, match="holds something already"):
        ja.compress(pipeline, origin, run=place)
    with pytest.raises(UserError, match="will not be deleted"):
        ja.compress(pipeline, origin, run=place, overwrite=True)
    with pytest.raises(UserError, match="nothing to resume"):
        ja.compress(pipeline, origin, run=place, resume=True)
    assert (place / "thesis.txt").read_text() == "all of it"


@pytest.mark.slow
def test_from_the_command_line(run_train, tmp_path):
    run_train("digits", "--model", "ConvNet(widths=(4,))", "--epochs", "1", "--run", "o")
    code, out, err = run_train("o", "--recipe", "int8", "--run", "r", module="jaxaccel.compress")
    assert code == 0, err
    assert "packed" in out and "at 10 Mbit/s" in out and (tmp_path / "r" / "pareto.png").exists()
    record = json.loads((tmp_path / "r" / "pipeline.json").read_text())
    assert record["command"] == ["python", "-m", "jaxaccel.compress", "o", "--recipe", "int8", "--run", "r"]
    words = ("o", "--int8.bits", "3", "--recipe", "int8", "--run", "s")
    code, _, err = run_train(*words, module="jaxaccel.compress")
    assert (
        code == 2
        and err.splitlines()[-1]
        == "error: invalid choice '3' for argument '--int8.bits'. Expected one of ('4', '8'). (--help shows all)"
    )


def test_a_damaged_file(tmp_path):
    file = tmp_path / "small.safetensors"
    file.write_bytes(b"no longer")
    with pytest.raises(UserError, match=r"small\.safetensors"):
        command.main([str(file), "--like", "digits", "--run", str(tmp_path / "r"), "--recipe", "int8"])
