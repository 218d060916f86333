"""Words of a command line name what a recipe file defines."""

import sys

import pytest

import jaxaccel as ja
from jaxaccel import cli
from jaxaccel.compress import main as compress
from jaxaccel.core import user_code
from jaxaccel.errors import UserError
from jaxaccel.training.run_directory import claim_run

FILE = '''
from functools import partial as bound

import jaxaccel as ja
from jaxaccel.data.augment import horizontal_flip as imported


class MyNet(ja.models.ConvNet):
    def __init__(self, width=8, **rest):
        super().__init__(widths=(width,), hidden=0, **rest)


class ConvNet(MyNet):
    """Named as one of ours."""


def keep(key, batch, share=1.0):
    return batch


def recipe():
    return ja.Recipe(name="own", model=MyNet, data=ja.training.Data(name="digits"), epochs=0.05)
'''


@pytest.fixture
def recipe_file(tmp_path):
    name = f"own_names_{abs(hash(str(tmp_path)))}"
    file = tmp_path / f"{name}.py"
    file.write_text(FILE)
    yield file
    sys.modules.pop(name, None)


def asked(*words):
    return cli.read("train", "", [str(word) for word in words])[0]


def test_a_recipe_file(recipe_file):
    recipe = asked(
        recipe_file, "--model", "MyNet(width=32)", "--augment", "keep(share=0.5)", "horizontal_flip"
    )
    module = sys.modules[recipe_file.stem]
    assert recipe.model.func is module.MyNet and recipe.model.keywords == {"width": 32}
    assert recipe.augment[0].func is module.keep and recipe.augment[0].keywords == {"share": 0.5}
    assert recipe.augment[1] is ja.augment.horizontal_flip
    assert asked(recipe_file, "--model", "ConvNet").model.__module__ == recipe_file.stem  # before ours
    assert asked("digits", "--model", "ConvNet").model is ja.models.ConvNet
    for name in ("imported", "bound", "recipe", "_hidden"):
        with pytest.raises(UserError, match=f"unknown name '{name}'"):
            asked(recipe_file, "--augment", name)
    with pytest.raises(UserError, match=r"unknown name .MyNett.; did you mean MyNet\?"):
        asked(recipe_file, "--model", "MyNett")


def test_a_recipe_file_kept_beside_a_run(recipe_file, tmp_path, monkeypatch):
    with claim_run(tmp_path / "run", asked(recipe_file, "--model", "resnet20"), source=recipe_file) as claim:
        claim.begin()
    recipe_file.unlink()
    monkeypatch.setattr(user_code, "_loaded", [])
    del sys.modules[recipe_file.stem]
    assert ja.load_recipe(tmp_path / "run").model is ja.models.resnet20
    assert recipe_file.stem not in sys.modules  # nothing of it was needed
    recipe = asked(tmp_path / "run", "--model", "MyNet(width=32)")
    assert recipe.model.func is sys.modules[recipe_file.stem].MyNet
    with claim_run(tmp_path / "again", recipe) as claim:
        claim.begin()
    assert ja.load_recipe(tmp_path / "again").model.keywords == {"width": 32}
    # Somebody else's file is not executed for that.
    (tmp_path / "run" / "signature").unlink()
    monkeypatch.setattr(user_code, "_loaded", [])
    del sys.modules[recipe_file.stem]
    with pytest.raises(UserError, match="unknown name 'MyNet'"):
        asked(tmp_path / "run", "--model", "MyNet(width=32)")
    assert recipe_file.stem not in sys.modules
    assert asked(tmp_path / "run", "--trust", "--model", "MyNet").model.__name__ == "MyNet"


def test_a_recipe_file_of_compress(recipe_file, monkeypatch):
    seen = []
    monkeypatch.setattr("jaxaccel.compress.compress", lambda *args, **_: seen.append(args))
    compress(["x.npz", "--like", str(recipe_file), "--training.model", "MyNet(width=32)"])
    assert seen[0][2].model.func is sys.modules[recipe_file.stem].MyNet
