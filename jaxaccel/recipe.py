"""The experiment as one frozen dataclass: all that decides what a run computes."""

import dataclasses
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxaccel import tasks
from jaxaccel.calls import nearest, parse, render
from jaxaccel.errors import UserError, option
from jaxaccel.flags import NAMES, Call, Values
from jaxaccel.optim import Optimizer, Schedule, Sparse
from jaxaccel.options import Count, CountOrZero, Options, Positive
from jaxaccel.parallel import MeshShape
from jaxaccel.step import Precision, Remat
from jaxaccel.tasks import ImageClassification, Task
from jaxaccel.teacher import Distill


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """Which data set, from where, and how it reaches the device."""

    name: str = "digits"
    """A TFDS name (mnist, cifar10, cmaterdb/bangla:1.0.0, ...) or a folder with one subfolder a class."""
    dir: Path | None = None
    """Where TFDS keeps its data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    downloads: Path | None = None
    """A directory with the original files, to prepare the data set without a network."""
    train_split: str = "train"
    """Split to train on, slices as TFDS writes them: train[:90%]."""
    eval_split: str = "test"
    """Split to evaluate on."""
    feed: Literal["auto", "resident", "stream"] = "auto"
    """resident: the split lives on the device; stream: batches are read while training."""
    resident_share: Positive = 0.25
    """auto makes the data resident when it takes no more than this share of a device's memory."""
    workers: CountOrZero = 0
    """Processes that read and decode for stream; 0 reads in threads of the trainer."""


@dataclasses.dataclass(frozen=True)
class Phases(Options):
    """Parts of a run with other images or batches, smaller ones at first: progressive resizing, batch-size warm-up."""

    at: tuple[float, ...] = ()
    """Where a new part begins, as shares of all examples that the run sees: 0.4 0.7 makes three parts."""
    image_size: tuple[CountOrZero, ...] = ()
    """Height and width of the training images in each part, resized on the device (Tan & Le 2021, arXiv:2104.00298)."""
    batch_size: tuple[Count, ...] = ()
    """Examples a step in each part (Smith et al. 2018, arXiv:1711.00489)."""


@dataclasses.dataclass(frozen=True)
class Recipe(Options):
    """One experiment. The same recipe gives the same run, bit for bit, on the same kind of device."""

    name: str
    """Of the run: it writes runs/NAME."""
    model: Call
    """What makes the model: resnet20, vit_s16(patch_size=4), or my_package.models.MyNet(width=64)."""
    seed: CountOrZero = 0
    """Of everything random."""
    epochs: Positive = 10.0
    """Passes over the training split."""
    batch_size: Count = 128
    """Examples a step, over all devices."""
    task: Task = ImageClassification()
    data: Data = Data()
    augment: tuple[Call, ...] = ()
    """Augmentations of a training batch, in order, on the device: horizontal_flip 'pad_and_crop(padding=4)'."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    sparse: Sparse = Sparse()
    distill: Distill = Distill()
    phases: Phases = Phases()
    mesh: MeshShape = MeshShape()
    precision: Precision = "float32"
    """Of matrix products and convolutions; int8-qat trains float32 weights to be quantised."""
    lowering: Literal["auto", "xla"] = "auto"
    """Of convolutions and poolings: auto takes forms that a single CPU device is known to run faster than XLA's own."""
    remat: Remat = "none"
    """What to keep of the forward pass for the backward one; less keeps less memory and computes more."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do when the loss or the gradient is not finite: stop, or leave that step out."""
    steps_per_call: CountOrZero = 0
    """Steps fused into one call of the device; 0 chooses by how long a step takes."""
    eval_every: Positive = 1.0
    """Epochs between evaluations, each of which saves a checkpoint."""
    patience: CountOrZero = 0
    """Stop after so many evaluations in a row without a better metric; 0 trains to the end. Schedules are
    stretched over all `epochs`: stopping early cuts them off."""
    keep: Count = 2
    """Checkpoints to keep, the newest ones; the best one is kept besides."""
    replicas: Count = 1
    """Runs with the seeds from `seed` on that train at once, as one program, spread over the devices."""
    sweep: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    """Numbers of the recipe that differ between runs which train at once, in all combinations:
    optimizer.learning-rate 0.01,0.1 seed 0,1,2."""

    def __post_init__(self) -> None:
        """Takes single numbers of the sweep for sequences of one, and checks the fields."""
        if isinstance(self.sweep, Mapping):
            values = {path: tuple(x) if isinstance(x, Iterable) else (x,) for path, x in self.sweep.items()}
            object.__setattr__(self, "sweep", values)
        super().__post_init__()

    def check_values(self) -> None:
        """Checks what excludes each other."""
        averaged = any((self.optimizer.lookahead, self.optimizer.ema, self.optimizer.swa))
        if self.sparse.on and (averaged or self.optimizer.name.startswith("schedule_free")):
            names = ", ".join(option(f"optimizer.{name}") for name in ("lookahead", "ema", "swa"))
            raise UserError(
                f"pruning and averages of weights do not go together: leave out {names} or {option('sparse')}"
            )
        if self.patience and self.sparse.on and self.sparse.method != "fixed":
            raise UserError(
                f"{option('patience')} and pruning do not go together: masks follow a schedule over the whole run"
            )
        if not dataclasses.is_dataclass(self.task):
            kind = type(self.task).__name__
            raise UserError(
                f"{kind} must be a frozen dataclass: write @dataclasses.dataclass(frozen=True) above it"
            )


MAY_DIFFER_ON_RESUME = (
    "mesh.", "non_finite", "data.dir", "data.downloads", "data.feed", "data.resident_share", "data.workers", "keep",
    "steps_per_call", "lowering", "patience",
)  # fmt: skip
"""What changes how a run is computed, but not what."""


def to_json(recipe: Any) -> Any:
    """`recipe` as plain values for recipe.json: functions as text, tuples as lists."""
    if dataclasses.is_dataclass(recipe) and not callable(recipe):
        fields = {f.name: to_json(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
        return {"kind": type(recipe).__name__, **fields} if isinstance(recipe, Task) else fields
    if isinstance(recipe, Mapping):
        return {key: to_json(value) for key, value in recipe.items()}
    if isinstance(recipe, (tuple, list)):
        return [to_json(value) for value in recipe]
    if callable(recipe):
        return render(recipe, NAMES)
    return str(recipe) if isinstance(recipe, Path) else recipe


def from_json(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_json` wrote down.

    Raises:
      UserError: a function in it cannot be found, or a field is of another version of jaxaccel.
    """
    plain = {name: _tuples(value) for name, value in values.items()}
    parts = {
        "data": Data,
        "optimizer": Optimizer,
        "schedule": Schedule,
        "mesh": MeshShape,
        "phases": Phases,
        "sparse": Sparse,
    }
    try:
        for name, kind in parts.items():
            plain[name] = kind(**plain[name])
        task = dict(plain["task"])
        plain["task"] = getattr(tasks, task.pop("kind"))(**task)
        paths = {
            name: Path(value) for name in ("dir", "downloads") if (value := getattr(plain["data"], name))
        }
        plain["data"] = dataclasses.replace(plain["data"], **paths)
        distill = dict(plain.get("distill", {}))  # older recipes have none
        distill["model"] = parse(distill["model"], NAMES) if distill.get("model") else None
        plain["distill"] = Distill(**distill)
        plain["model"] = parse(plain["model"], NAMES)
        plain["augment"] = tuple(parse(text, NAMES) for text in plain["augment"])
        return Recipe(**plain)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"recipe.json is not of this version of jaxaccel: {error}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def differences(now: Any, before: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted path, value now, value before) of all leaves in which two results of `to_json` differ."""
    if isinstance(now, dict) and isinstance(before, dict):
        return [
            found
            for key in dict.fromkeys((*now, *before))
            for found in differences(now.get(key), before.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if now == before else [(path, now, before)]


def names() -> dict[str, str]:
    """The recipes that come with jaxaccel and the first line of each one's docstring."""
    from jaxaccel import recipes

    found = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    return {name: shipped(name, "recipes").__doc__.strip().splitlines()[0] for name in sorted(found)}


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, of the Python file at that path, or of the run in that directory.

    Change it with `dataclasses.replace`.

    Raises:
      UserError: there is none, or the file defines no `recipe()` that returns a `Recipe`.
    """
    return load(name)[0]


def load(name: str) -> tuple[Recipe, Any]:
    """As `load_recipe`, with the module that holds the recipe.

    Raises:
      UserError: there is none, or the file defines no `recipe()` that returns a `Recipe`.
    """
    if (Path(name) / "recipe.json").is_file():
        return _from_run(Path(name))
    module = of_file(Path(name)) if name.endswith(".py") else shipped(name, "recipes")
    made = module.recipe() if callable(getattr(module, "recipe", None)) else None
    if not isinstance(made, Recipe):
        raise UserError(f"{name} must define recipe() -> jaxaccel.Recipe")
    return made, module


def shipped(name: str, package: str) -> Any:
    """The module of that name in a package of jaxaccel with a file for each recipe.

    Raises:
      UserError: there is none; it names the nearest.
    """
    known = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / package)])]
    if name not in known:
        raise UserError(f"no recipe {name!r}{nearest(name, known)} (--list shows them all)")
    return importlib.import_module(f"jaxaccel.{package}.{name}")


def _from_run(directory: Path) -> tuple[Recipe, Any]:
    """The recipe of a run, and the module that defined it, if it was a file of the user's own, else this one."""
    try:
        record = json.loads((directory / "recipe.json").read_text(encoding="utf-8"))
        own, written = record.get("module"), record["recipe"]
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{directory / 'recipe.json'} was not written by jaxaccel, or is damaged") from error
    module = of_file(directory / f"{own}.py") if own and own not in sys.modules else None
    return from_json(written), module or sys.modules[own or __name__]


def of_file(path: Path) -> Any:
    """The module in the user's own file `path`.

    Raises:
      UserError: there is no such file, or another module has its name.
    """
    if not path.is_file():
        raise UserError(f"no recipe file {path}: write one, or name one of --list")
    # Under its own name, so that its functions can be named in recipe.json and pickled for workers.
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    taken = sys.modules.get(name)
    if taken is not None and getattr(taken, "__file__", None) != str(path.absolute()):
        raise UserError(f"{path}: another module is called {name} already: rename the file")
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    spec.loader.exec_module(module)
    return module
