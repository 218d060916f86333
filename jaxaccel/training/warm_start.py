"""The weights that a run starts from, and its teacher: those of another run, or of a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxaccel.core.packages import PACKAGES, find_weights
from jaxaccel.core.paths import flatten_by_path
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import Model, abstract_variables, as_model, output_shape, takes_argument
from jaxaccel.models.pretrained import Loaded, load_pretrained
from jaxaccel.models.pretrained.names import is_of_head
from jaxaccel.tasks import Task
from jaxaccel.tasks.metrics import Headline
from jaxaccel.training import run_directory
from jaxaccel.training.facts import read_facts
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import load_recipe
from jaxaccel.training.saved_checkpoints import read_weights
from jaxaccel.training.teacher import Teacher
from jaxaccel.transforms.params import trainable
from jaxaccel.transforms.params.load import is_packed
from jaxaccel.transforms.params.load import load as load_params

PyTree = Any
SAME_CLASSES = "soft targets need a teacher of the same classes"


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights of a state, by path."""

    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    """What is not among them and starts anew: a head for other classes."""

    def said(self, origin: Path) -> str:
        """For people."""
        new = f"; new: {', '.join(path.removeprefix('params/') for path in self.fresh)}" if self.fresh else ""
        return f"starting from the weights of {origin}{new}"


def load_start(origin: Path, model: Model, inputs: tuple[PyTree, ...], headline: Headline) -> Start:
    """The weights in `origin` that fit `model`.

    Args:
      origin: directory of a run, whose best checkpoint counts, a file that `load_pretrained` reads, or the name of a
        model whose weights an installed package brings.
      model: what is to be trained.
      inputs: one batch's inputs to it, as `jax.ShapeDtypeStruct`s.
      headline: by which a run's best checkpoint was kept.

    Raises:
      UserError: there is no such run or file, or it is of another model, a larger one too. Only one layer, the last of
        its kind, may have another number of outputs.
    """
    own = _named(*abstract_variables(model))
    found = _weights_in(origin, model, inputs, headline, new_head=True)
    fresh = [name for name, x in own.items() if name not in found or found[name].shape != x.shape]
    _check_head(origin, own, found, fresh)
    return Start({name: np.asarray(found[name]) for name in own if name not in fresh}, tuple(fresh))


def load_teacher(
    recipe: Recipe,
    facts: Mapping[str, Any],
    student: Model,
    inputs: tuple[PyTree, ...],
    resumed: Path | None = None,
    trust: bool = False,
) -> Teacher | None:
    """The model that `recipe` learns from, without its weights; None where there is none.

    Args:
      recipe: of the student.
      facts: what the data set says of itself.
      student: the model that is to be trained.
      inputs: one batch's inputs to both, as `jax.ShapeDtypeStruct`s.
      resumed: directory of the student's run where it goes on; the teacher's own is not needed then.
      trust: execute code that the teacher's run brings along, also where somebody else wrote it.

    Raises:
      UserError: the model cannot be made, does not take the data, or has other outputs than the student.
    """
    options = recipe.distill
    if options.teacher is None:
        return None
    if options.soft and not recipe.task.logits:
        raise UserError(
            f"{type(recipe.task).__name__} has no logits, which soft targets are made of: "
            f"{option('distill.soft', 0)} learns from {option('distill.attention')} alone; a task whose model gives "
            "logits says so with `logits = True`"
        )
    kept = resumed / run_directory.TEACHER if resumed else options.teacher
    own = load_recipe(kept, trust=trust) if (kept / "recipe.json").is_file() else None
    if own and options.model:
        raise UserError(
            f"{options.teacher} is a run and knows its model: leave out {option('distill.model')}"
        )
    factory = own.model if own else options.model or recipe.model
    if theirs := read_facts(kept) if own else None:
        facts = {
            **facts,
            **{name: theirs.values[name] for name in recipe.task.own_facts if name in theirs.values},
        }
    # Of a sample, from which some models start, only the shape counts: weights are loaded.
    sample = {"sample": np.zeros(inputs[0].shape, np.float32)} if takes_argument(factory, "sample") else {}
    try:
        model = as_model(factory, {**facts, **sample}, inputs)
        given, taken = (getattr(output_shape(m, inputs), "shape", None) for m in (model, student))
    except UserError as error:
        raise UserError(f"teacher {options.teacher}: {error.message}") from error
    if options.soft and given != taken:
        raise UserError(
            f"the teacher {options.teacher} gives logits of shape {given} and the student {taken}: {SAME_CLASSES}"
        )
    return Teacher(model, read_task(kept, trust=trust) or recipe.task, options)


def read_task(run: Path | str | None, *, trust: bool = False) -> Task | None:
    """The task of a run, with what it learned of its data; None where there is no run.

    Args:
      run: its directory.
      trust: execute code that it brings along, also where somebody else wrote it.
    """
    if run is None or not (Path(run) / "recipe.json").is_file():
        return None
    task = load_recipe(Path(run), trust=trust).task
    facts = read_facts(Path(run))
    return facts.fit(task) if facts else task


def load_teacher_weights(teacher: Teacher | None, inputs: tuple[PyTree, ...]) -> dict[str, np.ndarray]:
    """The weights of the teacher, by their paths in a state; nothing where there is no teacher.

    Raises:
      UserError: there is no such run or file, it is of another model, or its weights are for other classes.
    """
    origin = teacher and teacher.options.teacher
    if not teacher or not origin:
        return {}
    found = _weights_in(origin, teacher.model, inputs, teacher.task.headline)
    own = _named(*abstract_variables(teacher.model))
    classes = jax.tree.leaves(output_shape(teacher.model, inputs))[0].shape[-1]
    for name, x in own.items():
        there = found[name].shape if name in found else None
        if there and (*there[:-1], classes) == x.shape != there:
            raise UserError(
                f"the teacher {origin} has {there[-1]} classes and the data {classes}: {SAME_CLASSES}"
            )
        if there != x.shape:
            has = "is missing" if there is None else f"has shape {there}, not {x.shape}"
            raise UserError(f"the teacher {origin} is of another model: {name} {has}")
    return {f"teacher/{name}": np.asarray(found[name]) for name in own}


def _weights_in(
    origin: Path, model: Model, inputs: tuple[PyTree, ...], headline: Headline, new_head: bool = False
) -> dict[str, Any]:
    """Parameters and model state by path; without a file's last layer where that has other outputs."""
    origin = find_weights(origin)
    if origin.is_dir():
        if (origin / "best" / "checkpoints").is_dir():
            raise UserError(f"{origin} holds several replicas: take the best of them, {origin / 'best'}")
        found = read_weights(origin, headline.name, headline.better).arrays
        left = found.keys() - _named(*abstract_variables(model)).keys()
    elif not origin.is_file():
        raise UserError(
            f"{origin} is no directory of a run and no file with weights; by name there are: {', '.join(PACKAGES)}"
        )
    elif is_packed(origin):
        stored = load_params(origin)
        if not isinstance(stored, dict) or "params" not in stored:
            raise UserError(f"{origin} holds no model: pack {{'params': ..., 'model_state': ...}}")
        found = _named(trainable(stored["params"]), stored.get("model_state", {}))
        left = found.keys() - _named(*abstract_variables(model)).keys()
    else:
        loaded = load_pretrained(model, origin, inputs=inputs, new_head=new_head)
        named = _named(loaded.params, loaded.state).items()
        found = {name: x for name, x in named if name.partition("/")[2] not in loaded.fresh}
        left = _left_over(loaded)
    if left:
        some = ", ".join(sorted(left)[:3]) + (", ..." if len(left) > 3 else "")
        raise UserError(
            f"{origin} is of another model: it has {some}, which the model lacks; name the right one with "
            f"{option('model')}, that of a teacher with {option('distill.model')}"
        )
    return found


def _left_over(loaded: Loaded) -> set[str]:
    """Layers of a file that the model lacks: all that are left, but for the old head where a new one starts."""
    others = {name for name in loaded.unused if not (loaded.fresh and is_of_head(name))}
    is_old_head = loaded.fresh and len(others) == len(loaded.unused) == 1
    return set() if is_old_head else others


def _named(params: PyTree, state: PyTree) -> dict[str, Any]:
    return flatten_by_path({"params": params, "model_state": state})


def _check_head(origin: Path, own: Mapping[str, Any], found: Mapping[str, Any], fresh: list[str]) -> None:
    """Checks that what does not fit is one layer with another number of outputs."""
    layers = {name.rpartition("/")[0] for name in fresh}
    for name in fresh:
        there = found.get(name)
        only_outputs = there is None or there.shape[:-1] == own[name].shape[:-1]
        if len(layers) > 1 or not only_outputs or (there is None and origin.is_dir()):
            has = "is missing" if there is None else f"has shape {there.shape}, not {own[name].shape}"
            raise UserError(f"{origin} is of another model: {name} {has}")
