"""The experiments' command lines: what they are for, and mistakes as one line before anything is trained."""

import importlib
from pathlib import Path

import pytest

from jaxaccel.errors import UserError

PLACE = Path(__file__).parent.parent / "experiments"
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


def test_rows_of_other_options_are_kept(script, tmp_path):
    rows, out = script("rows"), tmp_path / "rows.json"
    rows.write(out, {"seeds": 5}, {"a": 1})
    assert rows.known(out, {"seeds": 5}) == {"a": 1}
    with pytest.raises(UserError, match=r"was made with .*5}: choose another --out"):
        rows.known(out, {"seeds": 3})
