"""The experiments' command lines: what they are for, and mistakes as one line before anything is trained."""

import importlib
from pathlib import Path

import pytest

from jaxaccel.errors import UserError

PLACE = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(path.stem for path in PLACE.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(PLACE))
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_it_is_for(name, script, capsys):
    module = script(name)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert not ended.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert " ".join(module.__doc__.partition("\n")[0].split()) in said


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("optimizers", ["--only", "Adem"], "no 'Adem': choose of 'SGD'"),
        ("optimizers", ["--data", "minst"], "no 'minst': choose of"),
        ("optimizers", ["--sedes", "3"], "unknown argument --sedes; did you mean --seeds"),
        ("transfer", [], "Missing from .* --weights PATH"),
        (
            "augmentation_ablation",
            ["--only", "flop"],
            "no augmentation flop: choose of none, horizontal flip",
        ),
        ("compress_cifar10", ["--weights", ".", "--only", "x"], r"no resnet56-\*\.th in"),
        ("transfer", ["--weights", "."], r"no resnet20-\*\.th in"),
    ],
)
def test_mistakes(name, words, says, script):
    with pytest.raises(UserError, match=says):
        script(name).main(words)


def test_a_curve_counts_seconds_of_training_alone(script):
    cifar = script("cifar10_fast")
    log = [
        {"kind": "train", "step": 4, "step_seconds": 0.5},
        {"kind": "train", "step": 6, "step_seconds": 1.0},
        {"kind": "eval", "step": 6, "epoch": 1.0, "accuracy": 0.8},
        {"kind": "train", "step": 12, "step_seconds": 0.25},
        {"kind": "eval", "step": 12, "epoch": 2.0, "accuracy": 0.95},
    ]
    points = cifar.curve(log)
    assert points == [(4.0, 1.0, 80.0), (5.5, 2.0, 95.0)]
    assert cifar.reached(points, 0.94) == 5.5 and cifar.reached(points, 0.96) is None


def test_rows_of_other_options_are_kept(script, tmp_path):
    rows, out = script("rows"), tmp_path / "rows.json"
    rows.write(out, {"seeds": 5}, {"a": 1})
    assert rows.known(out, {"seeds": 5}) == {"a": 1}
    with pytest.raises(UserError, match=r"was made with .*5}: choose another --out"):
        rows.known(out, {"seeds": 3})
