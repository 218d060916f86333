"""Run directories of strangers execute nothing; those of one's own are known by their signatures."""

import dataclasses
import json
import multiprocessing
import os
import py_compile
import shutil
import stat
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.compress import main as compress
from jaxaccel.core import user_code
from jaxaccel.errors import UserError
from jaxaccel.tasks import ImageClassification
from jaxaccel.train import main as train
from jaxaccel.training import trust
from jaxaccel.training.recipe_file import load, to_json, warn_unreadable
from jaxaccel.training.run_directory import claim_run, keep_teacher
from jaxaccel.training.teacher import Distill


def prepare(directory, recipe, resume=False):
    """The directory of a run as it is when training begins."""
    with claim_run(directory, recipe, resume=resume) as claim:
        claim.begin()


SMALL = partial(ja.models.ConvNet, widths=(4,), hidden=0)
EVIL = """
from pathlib import Path

import jaxaccel as ja

Path({canary!r}).touch()


class Net(ja.models.ConvNet):
    pass


class Task(ja.tasks.ImageClassification):
    pass


def augmentation(key, batch):
    return batch
"""


def small():
    return dataclasses.replace(
        ja.load_recipe("digits"), name="stranger", model=SMALL, augment=(), epochs=0.05
    )


def record(modules=(), **changes):
    """What recipe.json of a stranger's run holds."""
    return {"format": 1, "recipe": to_json(small()) | changes, "modules": [*modules]}


def old(module=None, **changes):
    """The same as version 0.1 wrote it."""
    values = to_json(small())
    values["task"] = {"kind": values["task"].pop("class"), **values["task"]}
    return {"recipe": values | changes, "module": module}


def task(name, key="class"):
    fields = {k: x for k, x in to_json(small())["task"].items() if k != "class"}
    return {key: name, **fields}


TOUCH = "subprocess.run(args=['touch', {canary!r}])"
HOSTILE = {
    # Functions of the standard library, as models, augmentations, arguments and teachers' models.
    "model": record(model=TOUCH),
    "model of 0.1": old(model=TOUCH),
    "path": record(model="pathlib.Path.touch(self=1)"),
    "builtin": record(model="builtins.exec"),
    "augmentation": record(augment=["os.mkdir"]),
    "argument": record(model=f"packed(file='x', model={TOUCH})"),
    "argument in a tuple": record(model="ConvNet(widths=(os.system, 2))"),
    "a teacher's model": record(distill=to_json(small())["distill"] | {"teacher": "x.npz", "model": TOUCH}),
    # By way of modules that ours import.
    "through jaxaccel": record(model="jaxaccel.data.os.system(command='touch {canary}')"),
    "through flax": record(model="flax.linen.jax.numpy.save(file='{canary}', arr=1)"),
    "through models": record(model="jaxaccel.models.np.load(file='x')"),
    "through a class": record(model="flax.linen.Module.__init_subclass__"),
    "import module": record(model="jaxaccel.core.call_text.importlib.import_module(name='evil')"),
    "ours, but no model": record(model="jaxaccel.core.user_code.load_file(path='evil.py')"),
    "ours, but no model either": record(model="jaxaccel.core.files.write_text(path='{canary}', text='x')"),
    "optax, but no model": record(model="optax.adam(learning_rate=1.0)"),
    "a module of jaxaccel that is not imported": record(model="jaxaccel.compress.__main__.main"),
    # Code beside the run, in the working directory, or in a file of either.
    "file beside": record(["evil"], model="evil.Net"),
    "file beside, of 0.1": old("evil", model="evil.Net"),
    "working directory": record(model="evil.Net"),
    "task beside": record(["evil"], task=task("evil.Task")),
    "task beside, of 0.1": old("evil", task=task("Task", "kind")),
    "task of nobody": old(task=task("Task", "kind")),
    "augmentation beside": record(["evil"], augment=["evil.augmentation"]),
    "file elsewhere": record(["../evil"], model="evil.Net"),
    "file elsewhere, of 0.1": old("../evil"),
    "absolute file": record(["{directory}/evil"]),
    "link out of the run": record(["linked"], model="linked.Net"),
    "file named like ours": record(["jaxaccel"], model="jaxaccel.Net"),
    "file named main": record(["__main__"], model="__main__.Net"),
    "no file": record(["missing"], model="missing.Net"),
    "package beside": record(["package"], model="package.Net"),
    # Classes of options.
    "class that is no task": record(task=task("subprocess.Popen")),
    "options of another class": record(optimizer={"class": "evil.Task"}),
    "options where there are none": record(seed={"class": "evil.Task"}),
    "import where there is no function": record(seed={"import": "evil.Net"}),
    "path of ours": record(task=task("jaxaccel.tasks.task.abc.ABC")),
    # Names that lead elsewhere.
    "name with dots": record(name="../stranger"),
    "absolute name": record(name="/tmp/stranger"),
    "name with a slash": record(name="a/b"),
    "no name": record(name=".."),
    "name that is none": record(name={"a": 1}),
    # Forms that parsers stumble over.
    "lambda": record(model="lambda: 0"),
    "text that is no call": record(model="[].append"),
    "deep": record(model="ConvNet(widths=" + "(" * 3000 + ")" * 3000 + ")"),
    "long": record(model="a." * 100_000 + "b"),
    "minus": record(model="ConvNet(hidden=" + "-" * 15_000 + "1)"),
    "digits": record(model="ConvNet(hidden=" + "9" * 10_000 + ")"),
    "nul": record(model="ConvNet\0"),
    "surrogate": record(model="\ud800"),
    "model that is none": record(model=3),
    "task that is none": record(task=3),
    "task without class": record(task={}),
    "augment that is none": record(augment={"a": 1}),
    "unknown field": record(warp=9),
    "unknown field that writes to the terminal": record(**{"\x1b[2J\n": 9}),
    "class that writes to the terminal": record(task=task("\x1b[2J\n.Task")),
    "long class": record(task=task("evil." * 100_000 + "Task")),
    "function of nobody that writes to the terminal": record(model="\x1b[2J<lambda>"),
    "unknown field of a part": record(data=to_json(small())["data"] | {"warp": 9}),
    "newer format": record() | {"format": 2},
    "format that is none": record() | {"format": "1"},
    "modules that are none": record() | {"modules": {"evil": 1}},
    "modules of numbers": record() | {"modules": [3]},
    "no recipe": {"format": 1},
    "list": [],
}


def filled(value, **texts):
    if isinstance(value, str):
        for name, text in texts.items():
            value = value.replace(f"{{{name}!r}}", repr(text)).replace(f"{{{name}}}", text)
        return value
    if isinstance(value, dict):
        return {key: filled(inner, **texts) for key, inner in value.items()}
    return [filled(inner, **texts) for inner in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Makes the run of a stranger and returns its directory; files of code lie around it everywhere."""
    canary = tmp_path / "canary"

    def make(content):
        directory = tmp_path / "place" / "stranger"
        directory.mkdir(parents=True)
        code = EVIL.format(canary=str(canary))
        for where in (
            directory / "evil.py",
            tmp_path / "evil.py",
            directory.parent / "evil.py",
            directory / "jaxaccel.py",
        ):
            where.write_text(code)
        (directory / "linked.py").symlink_to(tmp_path / "evil.py")
        (directory / "package").mkdir()
        (directory / "package" / "__init__.py").write_text(code)
        (directory / "signature").write_text("0" * 64 + "\n")
        content = filled(content, canary=str(canary), directory=str(directory))
        (directory / "recipe.json").write_text(json.dumps(content))
        return directory

    make.canary = canary
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` has the working directory
    yield make
    assert not canary.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_loading_a_strangers_run_executes_nothing(stranger, name):
    directory = stranger(HOSTILE[name])
    with pytest.raises(UserError) as error:
        ja.load_recipe(directory)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000
    assert "recipe.json" in str(error.value)


WAYS = ("model", "file beside", "task beside", "through jaxaccel", "file elsewhere", "name with dots")


@pytest.mark.parametrize("name", WAYS)
def test_no_command_executes_anything_of_it(stranger, name, tmp_path):
    directory = stranger(HOSTILE[name])
    (directory / "checkpoints").mkdir()
    small_one = ["digits", "--model", "ConvNet(widths=(4,), hidden=0)", "--epochs", "0.05", "--run", "mine"]
    # As the teacher of a run that goes on, whose recipe is kept in it.
    student = dataclasses.replace(ja.load_recipe("digits"), name="student", model=SMALL, epochs=0.05)
    student = dataclasses.replace(student, distill=Distill(directory))
    kept = tmp_path / "kept"
    (kept / "teacher").mkdir(parents=True)
    (kept / "recipe.json").write_text(json.dumps({"format": 1, "recipe": to_json(student), "modules": []}))
    shutil.copytree(directory, kept / "teacher", dirs_exist_ok=True, symlinks=True)
    ways = {
        "train": lambda: train([str(directory), "--name", "again"]),
        "resume": lambda: train([str(directory), "--run", str(directory), "--resume"]),
        "compress": lambda: compress([str(directory)]),
        "compress in Python": lambda: ja.compress(ja.compression.load_pipeline("int8"), directory),
        "like": lambda: compress(["x.npz", "--like", str(directory)]),
        "teacher": lambda: train([*small_one, "--distill.teacher", str(directory)]),
        "kept teacher": lambda: ja.train(student, run=kept, resume=True),
    }
    for way in ways.values():
        with pytest.raises(UserError):
            way()
    assert not stranger.canary.exists()


def test_recipe_json_itself_may_be_anything(stranger):
    directory = stranger(record())
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"recipe": ' * 50_000, b"null", b'"recipe"'):
        (directory / "recipe.json").write_bytes(content)
        with pytest.raises(UserError, match="was not written by jaxaccel, or is damaged"):
            ja.load_recipe(directory)


def test_what_names_only_ours_opens(stranger):
    models = [
        "ConvNet(hidden=0, widths=(4,))", "jaxaccel.models.vision.convnet.ConvNet(widths=(4,))",
        "flax.linen.Dense(features=10)", "flax.nnx.nn.linear.Linear(in_features=4)",
        "packed(file='x', model=resnet20)",
    ]  # fmt: skip
    directory = stranger(record(["evil"]))  # never needed, and so never executed
    for model in models:
        content = record(["evil"], model=model, augment=["horizontal_flip"])
        (directory / "recipe.json").write_text(json.dumps(content))
        assert ja.load_recipe(directory).augment == (ja.augment.horizontal_flip,)
    ours = record(task=task("jaxaccel.tasks.image_classification.ImageClassification"))
    (directory / "recipe.json").write_text(json.dumps(ours))
    assert ja.load_recipe(directory).task == ImageClassification()


# ---- code of one's own --------------------------------------------------------------------------------------

OWN = '''"""Mine."""

import dataclasses
import pathlib

import jaxaccel as ja


pathlib.Path({canary!r}).touch()


class Net(ja.models.ConvNet):
    pass


@dataclasses.dataclass(frozen=True)
class ImageClassification(ja.tasks.ImageClassification):
    """Named as ours."""

    extra: tuple[float, ...] = (1.0,)


def keep(key, batch):
    return batch


def recipe():
    return ja.Recipe(
        name="own", model=Net, task=ImageClassification(extra=(2.0, 3.0)), augment=(keep,),
        data=ja.training.Data(name="digits"), epochs=0.05,
    )
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The run of a recipe file of one's own, as training makes it, in a process that has forgotten the file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    canary, name = tmp_path / "canary", f"own_{abs(hash(str(tmp_path)))}"
    file = tmp_path / f"{name}.py"
    file.write_text(OWN.format(canary=str(canary)))
    prepare(tmp_path / "run", ja.load_recipe(file))
    file.unlink()
    canary.unlink()
    forget(monkeypatch)
    return tmp_path / "run"


def forget(monkeypatch):
    monkeypatch.setattr(user_code, "_loaded", [])
    for module in [m for m in list(sys.modules) if m.startswith("own_")]:
        monkeypatch.delitem(sys.modules, module)


def test_ones_own_run_is_read_again(own, tmp_path):
    recipe = ja.load_recipe(own)
    assert (tmp_path / "canary").exists()
    assert recipe.task.extra == (2.0, 3.0) and type(recipe.task).__name__ == "ImageClassification"
    assert type(recipe.task) is not ImageClassification and isinstance(
        recipe.task, ja.tasks.ImageClassification
    )
    assert recipe.model.__name__ == "Net" and recipe.augment[0].__name__ == "keep"
    assert load(own).about == "Mine."
    # The same file again is the same module; and what starts from it keeps the code and is one's own too.
    assert ja.load_recipe(own).model is recipe.model
    prepare(tmp_path / "again", recipe)
    assert (tmp_path / "again" / f"{recipe.model.__module__}.py").is_file()
    assert ja.load_recipe(tmp_path / "again").task == recipe.task
    prepare(own, recipe, resume=True)


@pytest.mark.parametrize("harm", ["code", "recipe", "signature", "none", "other user", "readable secret"])
def test_a_run_that_was_changed_is_nobodys(own, tmp_path, monkeypatch, harm):
    (file,) = own.glob("*.py")
    secret = tmp_path / "config" / "jaxaccel" / "secret"
    if harm == "code":
        file.write_text(file.read_text() + "\n")
    elif harm == "recipe":
        (own / "recipe.json").write_text((own / "recipe.json").read_text().replace('"seed": 0', '"seed": 1'))
    elif harm == "signature":
        (own / "signature").write_text("f" * 64)
    elif harm == "none":
        (own / "signature").unlink()
    elif harm == "other user":
        secret.unlink()
    else:
        secret.chmod(0o644)
    with pytest.raises(UserError, match=r"is executed unasked only in runs.*trust=True") as error:
        ja.load_recipe(own)
    assert "--trust" in error.value.as_flags()
    assert ("other users may read" in str(error.value)) == (harm == "readable secret")
    assert not (tmp_path / "canary").exists()
    assert ja.load_recipe(own, trust=True).model.__name__ == "Net"
    assert (tmp_path / "canary").exists()


def test_nothing_else_of_the_directory_is_imported(own, tmp_path):
    (file,) = own.glob("own_*.py")
    # A compiled file that claims to be that of the source, and modules that it imports.
    evil = tmp_path / "evil.py"
    evil.write_text(EVIL.format(canary=str(tmp_path / "bytes")))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = Path(str(py_compile.compile(str(evil), dfile=str(file), invalidation_mode=unchecked)))
    (own / "__pycache__").mkdir()
    shutil.copy(compiled, own / "__pycache__" / f"{file.stem}.{compiled.suffixes[0][1:]}.pyc")
    for name in ("dataclasses.py", "pathlib.py"):
        shutil.copy(evil, own / name)
    assert ja.load_recipe(own).model.__name__ == "Net"
    assert not (tmp_path / "bytes").exists()
    assert str(own) not in sys.path


def test_processes_that_read_data_find_the_code(own):
    element = ja.load_recipe(own).task.element
    example = {"image": np.zeros((2, 2, 1), np.uint8), "label": 1}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(element, (example,)).get(timeout=120)["label"] == 1


def test_the_kept_recipe_of_a_teacher_is_ones_own(own, tmp_path):
    (tmp_path / "student").mkdir()
    keep_teacher(own, tmp_path / "student")
    assert ja.load_recipe(tmp_path / "student" / "teacher").model.__name__ == "Net"


def test_the_secret_is_made_for_ones_own_eyes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    trust.sign(tmp_path, {"a": b"1", "b": b"2"})
    secret = tmp_path / "config" / "jaxaccel" / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and len(secret.read_bytes()) == 32
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert trust.is_own(tmp_path, {"b": b"2", "a": b"1"})
    for other in (
        {"a": b"12", "b": b""},
        {"a": b"1"},
        {"a": b"1", "b": b"2", "c": b""},
        {"a1": b"", "b": b"2"},
    ):
        assert not trust.is_own(tmp_path, other)
    before = secret.read_bytes()
    trust.sign(tmp_path, {})
    assert secret.read_bytes() == before


def test_without_a_secret_nothing_is_trusted_and_that_is_said(own, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file" / "config"))
    with pytest.raises(UserError, match=r"no run is known as your own: .*file/config.*Not a directory"):
        ja.load_recipe(own)
    recipe = ja.load_recipe(own, trust=True)
    assert (
        "is not marked as your own" in warn_unreadable(recipe)
        and warn_unreadable(ja.load_recipe("digits")) == ""
    )
    prepare(tmp_path / "unsigned", recipe)
    assert not (tmp_path / "unsigned" / "signature").exists()


def test_a_relative_configuration_directory_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    monkeypatch.setenv("HOME", str(tmp_path))
    trust.sign(tmp_path, {})
    assert (tmp_path / ".config" / "jaxaccel" / "secret").is_file()
    assert os.environ["XDG_CONFIG_HOME"] == "config"


def test_compress_and_train_take_trust(own, monkeypatch):
    (own / "signature").unlink()
    seen = []
    monkeypatch.setattr("jaxaccel.compress.compress", lambda *args, **kwargs: seen.append((args, kwargs)))
    monkeypatch.setattr("jaxaccel.training.loop.train", lambda *args, **kwargs: seen.append((args, kwargs)))
    with pytest.raises(UserError, match="trust"):
        compress([str(own)])
    compress([str(own), "--trust"])
    train([str(own), "--name", "again", "--trust"])
    (_, compressed), (_, trained) = seen
    assert compressed["trust"] and trained["trust"]
