"""recipe.json: what it holds comes back, older ones open, and what would not come back is said when a run starts."""

import dataclasses
import enum
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FIXTURES
from flax import linen, nnx

import jaxaccel as ja
from jaxaccel.core.call_text import parse, render
from jaxaccel.errors import UserError
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.file_names import FileNames
from jaxaccel.training.function_names import NAMES
from jaxaccel.training.recipe_file import (
    find_changes,
    find_differences,
    from_json,
    list_free_on_resume,
    read_recipe_file,
    to_json,
    warn_unreadable,
    write,
)
from jaxaccel.training.run_directory import claim_run


def prepare(directory, recipe, resume=False):
    """The directory of a run as it is when training begins."""
    with claim_run(directory, recipe, resume=resume) as claim:
        claim.begin()


RUNS = FIXTURES / "runs"


def through_json(values):
    return json.loads(json.dumps(values, allow_nan=False))


def again(recipe):
    """As another process that may import this file reads it."""
    return from_json(through_json(to_json(recipe)), FileNames(Path("recipe.json"), b"", trust=True))


# ---- options of one's own -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Penalty:
    weight: float = 0.5


@dataclasses.dataclass(frozen=True)
class Focal(Penalty):
    gamma: float = 2.0


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Rich(ImageClassification):
    penalty: Penalty = Penalty()
    other: Penalty | None = None
    several: tuple[Penalty, ...] = ()
    either: Penalty | Literal["none"] = "none"
    pair: tuple[int, str] = (1, "a")
    nested: tuple[tuple[float, ...], ...] = ()
    listed: list[int] = dataclasses.field(default_factory=list)
    chosen: frozenset[str] = frozenset()
    folder: Path = Path()
    files: tuple[Path, ...] = ()
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    by_class: Mapping[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    penalties: dict[str, Penalty] = dataclasses.field(default_factory=dict)
    mode: Literal["a", "b", 3] = "a"
    color: Color = Color.RED
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    loss: str | Callable[..., Any] = "mse"
    anything: Any = None
    maybe: float | tuple[float, ...] | None = None
    kind: str = "its own field of that name"


@dataclasses.dataclass(frozen=True)
class Plain(ja.tasks.Task):
    """Without options."""

    def facts(self, features): ...
    def element(self, example): ...
    def inputs(self, batch): ...
    def check(self, outputs, facts): ...
    def loss(self, outputs, batch): ...
    def predict(self, apply, batch): ...
    def evaluate(self, apply, batch): ...


def augmentation(key, batch, *, amount=1.0, ops=(), dtype=None):
    return batch


class Outer:
    class Net(nnx.Module):
        def __init__(self, width, *, classes, activation=jax.nn.relu, rngs): ...


class Mlp(linen.Module):
    features: tuple[int, ...] = (8,)
    classes: int = 10
    activation: Callable[..., Any] = jax.nn.relu
    dtype: Any = jnp.float32

    @linen.compact
    def __call__(self, x):
        return x


def recipe_with(**options):
    return ja.Recipe(**{"name": "run", "model": ja.models.resnet20, **options})


CHANGES = {
    "penalty": Focal(0.1, 3.0),
    "other": Penalty(float("inf")),
    "several": (Penalty(1.0), Focal(2.0)),
    "either": Focal(),
    "pair": (7, "b"),
    "nested": ((1.0, 2.0), (), (3.0,)),
    "listed": [1, 2],
    "chosen": frozenset({"x", "y"}),
    "folder": Path("/some/where"),
    "files": (Path("a"), Path("b")),
    "weights": {"class": 1.0, "import": 2.0},
    "by_class": {3: (1.0,), -1: ()},
    "penalties": {"a": Focal(), "b": Penalty()},
    "mode": 3,
    "color": Color.BLUE,
    "activation": jax.nn.gelu,
    "loss": optax.huber_loss,
    "anything": (1, ("a", None), {"x": (2.0,)}),
    "maybe": (0.5, 1.5),
    "kind": "other",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_task_of_ones_own_comes_back(name):
    assert set(CHANGES) | {f.name for f in dataclasses.fields(ImageClassification)} == {
        f.name for f in dataclasses.fields(Rich)
    }
    task = Rich(**{name: CHANGES[name]})
    recipe = recipe_with(task=task)
    back = again(recipe).task
    assert type(back) is Rich and back == task
    assert type(getattr(back, name)) is type(getattr(task, name))
    assert warn_unreadable(recipe) == ""
    assert to_json(recipe)["task"]["class"] == f"{__name__}.Rich"


def test_a_task_without_fields_comes_back():
    assert type(again(recipe_with(task=Plain())).task) is Plain


def test_a_class_named_like_ours_is_its_own():
    class_ = dataclasses.dataclass(frozen=True)(type("ImageClassification", (ImageClassification,), {}))
    class_.__module__, class_.__qualname__ = __name__, "ImageClassificationOfOnesOwn"
    setattr(sys.modules[__name__], class_.__qualname__, class_)
    back = again(recipe_with(task=class_(tta="flip"))).task
    assert type(back) is class_ and back.tta == "flip"
    assert to_json(recipe_with())["task"]["class"] == "ImageClassification"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (partial(Outer.Net, 8), "{m}.Outer.Net(width=8)"),
        (partial(ja.models.ResNetCifar, 8, width=4), "ResNetCifar(depth=8, width=4)"),
        (partial(Outer.Net, 8, activation=jax.nn.gelu), "{m}.Outer.Net(activation=jax.nn.gelu, width=8)"),
        (partial(augmentation, ops=(ja.augment.hue, partial(ja.augment.rotate, degrees=3))),
         "{m}.augmentation(ops=(hue, rotate(degrees=3)))"),
        (partial(augmentation, amount=np.float32(0.5), dtype=jnp.bfloat16),
         "{m}.augmentation(amount=0.5, dtype=jax.numpy.bfloat16)"),
        (partial(augmentation, ops={"a": [ja.augment.hue]}), "{m}.augmentation(ops={{'a': [hue]}})"),
        (Mlp((3, 4)), "{m}.Mlp(classes=10, features=(3, 4))"),
        (Mlp(activation=jax.nn.gelu), "{m}.Mlp(activation=jax.nn.gelu, classes=10, features=(8,))"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_functions_with_all_that_is_bound_come_back(function, text):
    assert render(function, NAMES) == text.format(m=__name__)
    back = parse(render(function, NAMES), NAMES)
    assert render(back, NAMES) == text.format(m=__name__)
    assert back.func is (function.func if isinstance(function, partial) else type(function))
    assert warn_unreadable(recipe_with(model=function)) == ""


def test_what_cannot_be_read_again_is_said():
    class Local(ja.models.ConvNet):
        pass

    @dataclasses.dataclass(frozen=True)
    class LocalTask(ImageClassification):
        pass

    main = type("Main", (ja.models.ConvNet,), {"__module__": "__main__"})
    hidden = type("Hidden", (ja.models.ConvNet,), {"__module__": __name__})
    cases = [
        (recipe_with(model=lambda: None), "a lambda"),
        (recipe_with(model=partial(lambda: None)), "a lambda"),
        (recipe_with(model=Local), "Local, defined inside a function"),
        (recipe_with(model=main), "Main, defined in the notebook or script that runs"),
        (recipe_with(model=hidden), f"Hidden, which is not what {__name__} calls so"),
        (recipe_with(model=partial(Outer.Net, object())), "width of Net"),
        (recipe_with(model=partial(augmentation, 1, 2, 3)), "positional arguments of augmentation"),
        (recipe_with(model=ja.models.ConvNet, augment=(ja.augment.chain(),)), "defined inside a function"),
        (recipe_with(task=LocalTask()), "LocalTask, defined inside a function"),
        (recipe_with(task=Rich(anything=object())), "task.anything, an object of class object"),
        (recipe_with(task=Rich(activation=lambda x: x)), "a lambda"),
    ]
    for recipe, says in cases:
        said = warn_unreadable(recipe)
        assert says in said and "\n" not in said and "module or a recipe file" in said, said
        json.dumps(write(recipe).values)  # and is written all the same
    assert warn_unreadable(recipe_with()) == ""


def test_it_is_said_when_the_run_starts(tmp_path, capsys, monkeypatch):
    class Linear(nnx.Module):
        def __init__(self, *, classes, rngs):
            self.head = nnx.Linear(64, classes, rngs=rngs)

        def __call__(self, x):
            return self.head(x.reshape(x.shape[0], -1))

    recipe = recipe_with(model=Linear, data=ja.training.Data(name="digits"), epochs=0.1, batch_size=128)
    ja.train(recipe, run=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    (said,) = [i for i, line in enumerate(lines) if line.startswith("note: this run trains")]
    assert "Linear, defined inside a function" in lines[said]
    assert said < next(i for i, line in enumerate(lines) if "evaluation" in line)
    with pytest.raises(UserError, match=r"of the notebook or script that trained it, which is not kept"):
        ja.load_recipe(tmp_path / "run")
    # The session that has it goes on.
    assert ja.train(recipe, run=tmp_path / "run", resume=True).summary["finished"]


# ---- formats ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A copy of a run's directory, as version 0.1 wrote it."""

    def copied(name):
        shutil.copytree(RUNS / name, tmp_path / name)
        return tmp_path / name

    return copied


def test_a_run_of_version_0_1_opens_and_goes_on(run):
    directory = run("plain")
    recipe = ja.load_recipe(directory)
    assert recipe.name == "plain" and recipe.epochs == 0.1 and recipe.task == ImageClassification()
    assert recipe.model.func is ja.models.ConvNet and recipe.model.keywords == {"widths": (4,), "hidden": 0}
    assert recipe.augment[1].keywords == {"rotation": 10.0, "scale": (0.9, 1.1)}
    assert recipe.optimizer.args == {"b1": 0.8} and recipe.data.downloads == Path()
    assert recipe.phases.batch_size == (32, 64) and recipe.schedule.boundaries == (0.5, 0.75)
    prepare(directory, recipe, resume=True)
    prepare(directory, dataclasses.replace(recipe, name="other"), resume=True)
    other = dataclasses.replace(recipe, task=ImageClassification(tta="flip"))
    with pytest.raises(UserError, match=r"was trained with task.tta = none, this recipe has flip"):
        prepare(directory, other, resume=True)


def test_a_run_of_version_0_1_goes_on_with_arguments_that_it_did_not_write_down(run):
    directory = run("plain")
    recipe = ja.load_recipe(directory)
    file = directory / "recipe.json"
    file.write_text(file.read_text().replace("ConvNet(hidden=0, widths=(4,))", "ConvNet(hidden=0)"))
    same = dataclasses.replace(recipe, model=partial(ja.models.ConvNet, (4,), hidden=0))
    prepare(directory, same, resume=True)
    with pytest.raises(UserError, match="was trained with model"):
        prepare(directory, recipe, resume=True)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1, "modules": []}))
    with pytest.raises(UserError, match="was trained with"):
        prepare(directory, same, resume=True)


def test_a_run_of_version_0_1_with_a_file_of_ones_own_needs_trust(run):
    directory = run("mine")
    with pytest.raises(
        UserError, match=r"names my_recipe.Mlp, .* is executed unasked only in runs.*trust=True"
    ):
        ja.load_recipe(directory)
    recipe = ja.load_recipe(directory, trust=True)
    assert recipe.model.__name__ == "Mlp"
    prepare(directory, recipe, resume=True)


def leaves(values, path=()):
    if isinstance(values, dict):
        for name, inner in values.items():
            yield (*path, name)
            yield from leaves(inner, (*path, name))


def test_a_missing_field_takes_its_default():
    recipe = recipe_with(mesh=ja.distributed.MeshShape(), epochs=3.0)
    whole = through_json(to_json(recipe))
    for path in [p for p in leaves(whole) if p not in (("name",), ("model",), ("task", "class"))]:
        values = through_json(whole)
        inner = values
        for name in path[:-1]:
            inner = inner[name]
        default = inner.pop(path[-1])
        back = to_json(from_json(values))
        assert [p for p, _, _ in find_differences(through_json(back), whole)] == (
            [] if path != ("epochs",) else ["epochs"]
        )
        found = find_changes(recipe, values)
        assert found == ([] if path != ("epochs",) else [("epochs", 3.0, 10.0)]), (path, default)
    for name in ("name", "model"):
        with pytest.raises(UserError, match=f"{name} is missing"):
            from_json({k: x for k, x in whole.items() if k != name})


def test_an_unknown_field_is_named():
    values = through_json(to_json(recipe_with()))
    with pytest.raises(
        UserError, match=r"no optimizer.learning_rat in .*did you mean learning_rate.*upgrade"
    ):
        from_json(values | {"optimizer": values["optimizer"] | {"learning_rat": 1.0}})
    with pytest.raises(UserError, match="there is no warp in this version"):
        from_json(values | {"warp": 9})


def test_the_format_has_a_number(tmp_path):
    prepare(tmp_path / "run", recipe_with())
    file = tmp_path / "run" / "recipe.json"
    record, content = read_recipe_file(file)
    assert record["format"] == 1 and record["modules"] == [] and content == file.read_bytes()
    file.write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(UserError, match=r"has format 2, and this version reads up to 1: upgrade jaxaccel"):
        ja.load_recipe(tmp_path / "run")


def test_fields_that_may_differ_carry_a_mark():
    assert set(list_free_on_resume(recipe_with())) == {
        "name", "mesh", "non_finite", "data.dir", "data.downloads", "data.feed", "data.resident_share", "data.workers",
        "keep", "steps_per_call", "lowering", "patience",
    }  # fmt: skip
    recipe = recipe_with()
    before = through_json(to_json(recipe))
    free = dataclasses.replace(
        recipe,
        name="other",
        mesh=ja.distributed.MeshShape(fsdp=2),
        keep=3,
        data=ja.training.Data(workers=2),
        non_finite="skip",
    )
    assert find_changes(free, before) == []
    assert find_changes(dataclasses.replace(free, seed=1), before) == [("seed", 1, 0)]


@pytest.mark.parametrize("name", ["a/b", "..", "", "a\0b", "/tmp/x", "a\nb", "x" * 300])
def test_a_name_stays_in_runs(name):
    with pytest.raises(UserError, match="is that of a directory in runs/, without slashes"):
        recipe_with(name=name)


def test_a_name_with_a_slash_of_version_0_1_still_opens(run):
    directory = run("plain")
    file = directory / "recipe.json"
    file.write_text(file.read_text().replace('"name": "plain"', '"name": "group/plain"'))
    assert ja.load_recipe(directory).name == "group-plain"


# ---- recipe files -------------------------------------------------------------------------------------------


def test_python_keeps_the_file_that_a_model_comes_from(tmp_path):
    """`ja.train` knows nothing of a file but the functions that came from it."""
    file = tmp_path / "kept_recipe.py"
    shutil.copy(RUNS / "mine" / "my_recipe.py", file)
    recipe = ja.load_recipe(str(file))
    content = file.read_bytes()
    file.write_text("changed since")
    prepare(tmp_path / "run", recipe)
    assert (tmp_path / "run" / "kept_recipe.py").read_bytes() == content
    assert ja.load_recipe(tmp_path / "run").model is recipe.model


def test_two_runs_with_files_of_one_name_are_two(tmp_path):
    file, runs = tmp_path / "edited_recipe.py", [tmp_path / "a", tmp_path / "b"]
    for width, directory in zip((8, 16), runs, strict=True):
        text = (RUNS / "mine" / "my_recipe.py").read_text().replace("width=8", f"width={width}")
        file.write_text(text)
        prepare(directory, ja.load_recipe(str(file)))
    found = [ja.load_recipe(directory).model for directory in runs]
    assert [model.__init__.__kwdefaults__["width"] for model in found] == [8, 16]
    prepare(tmp_path / "c", ja.load_recipe(runs[0]))
    assert "width=8" in (tmp_path / "c" / "edited_recipe.py").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def recipe(:", r"file.py, line 1: SyntaxError"),
        ("import not_there_at_all", r"file.py cannot be imported: No module named .*PYTHONPATH"),
        ("1 / 0", r"file.py: ZeroDivisionError: division by zero \(--traceback"),
    ],
)
def test_a_file_that_fails_is_one_line(tmp_path, text, says):
    file = tmp_path / "bad_file.py"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        ja.load_recipe(str(file))
    assert "bad_file" not in sys.modules


@pytest.mark.parametrize(
    ("name", "load"), [("recipe", ja.load_recipe), ("pipeline", ja.compression.load_pipeline)]
)
def test_a_function_of_a_file_that_fails_is_one_line(tmp_path, name, load):
    file = tmp_path / f"failing_{name}.py"
    file.write_text(f"def {name}(): return {{}}['size']")
    with pytest.raises(UserError, match=rf"failing_{name}.py: KeyError: 'size' \(--traceback"):
        load(str(file))


def test_a_file_does_not_take_the_name_of_a_module(tmp_path):
    file = tmp_path / "dataclasses.py"
    file.write_text("def recipe(): ...")
    with pytest.raises(UserError, match="another module is called dataclasses already"):
        ja.load_recipe(str(file))
    assert sys.modules["dataclasses"] is dataclasses
    assert str(tmp_path) not in sys.path  # where processes that read data would import it
