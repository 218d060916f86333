"""From a recipe to what trains it: one `Training`, or one of `Replicas` for its replicas and sweeps."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxaccel import augment, rundir
from jaxaccel.calls import nearest
from jaxaccel.checkpoint import Checkpoints
from jaxaccel.errors import UserError
from jaxaccel.modules import Model
from jaxaccel.recipe import Recipe
from jaxaccel.replicas import Replicas, pick
from jaxaccel.step import Training, TrainState

FIXED = (
    "epochs", "batch_size", "steps_per_call", "eval_every", "keep", "replicas", "optimizer.accumulate", "data.",
    "mesh.",
)  # fmt: skip
"""Numbers that shape the program or the run around it: they cannot differ between replicas of one."""


def training_of(
    recipe: Recipe, model: Model, steps: int, mesh: Mesh, image_size: int = 0
) -> Training | Replicas:
    """What trains `recipe` for `steps` steps, on images that are resized where `image_size` is not 0.

    Raises:
      UserError: the sweep names no number of the recipe, or one that cannot differ within one program.
    """
    values = points(recipe)
    if not values:
        return _training(recipe, model, steps, image_size)
    for i in range(len(values["seed"])):  # what is checked when a recipe is made
        with_values(recipe, {path: column[i].item() for path, column in values.items()})

    def make(numbers: Mapping[str, Any]) -> Training:
        return _training(_unchecked(recipe, numbers), model, steps, image_size)

    fixed = [path for path, column in values.items() if not _may_differ(make, path, column)]
    if fixed:
        raise UserError(
            f"{' and '.join(fixed)} decides what is compiled and cannot differ within one program: train one run for "
            "each value"
        )
    return Replicas(make, values, mesh)


def _may_differ(make: Callable[[Mapping[str, Any]], Training], path: str, column: np.ndarray) -> bool:
    """Whether a training can be made without knowing the number at `path`."""
    try:
        jax.eval_shape(lambda number: make({path: number}).init(), column[0])
    except (jax.errors.ConcretizationTypeError, UserError, TypeError):
        return False
    return True


def points(recipe: Recipe) -> dict[str, np.ndarray]:
    """{path: (replicas,)} for every number in which the replicas differ; empty where there is one run.

    The last path of the sweep varies fastest. ``seed`` is always among them.

    Raises:
      UserError: a path that is no number of the recipe, or both ``replicas`` and a sweep over seeds.
    """
    axes = {path.replace("-", "_"): tuple(found) for path, found in recipe.sweep.items()}
    if recipe.replicas > 1:
        if "seed" in axes:
            raise UserError("the sweep names the seeds already: leave out --replicas")
        axes["seed"] = tuple(recipe.seed + i for i in range(recipe.replicas))
    if not axes:
        return {}
    numbers = sweepable(recipe)
    for path, found in axes.items():
        if path not in numbers:
            why = " decides the shape of the run" if path.startswith(FIXED) else " is no number of the recipe"
            raise UserError(f"sweep: {path}{why}{nearest(path, list(numbers))}")
        if not found:
            raise UserError(f"sweep: {path} has no values")
    columns = np.array(list(itertools.product(*axes.values())), np.float64).T
    values = {path: column.astype(numbers[path]) for path, column in zip(axes, columns, strict=True)}
    for path, column in values.items():
        if not np.allclose(column, columns[list(axes).index(path)]):
            raise UserError(f"sweep: {path} takes whole numbers")
    return {"seed": np.full(columns.shape[1], recipe.seed, np.int32), **values}


def sweepable(value: Any, prefix: str = "") -> dict[str, type]:
    """{path: dtype} of the numbers of a recipe that may differ between replicas."""
    found: dict[str, type] = {}
    items = value.items() if isinstance(value, Mapping) else (
        (field.name, getattr(value, field.name)) for field in dataclasses.fields(value)
    )  # fmt: skip
    for name, inner in items:
        path = f"{prefix}{name}"
        if path.startswith(FIXED) or f"{path}.".startswith(FIXED) or isinstance(inner, bool):
            continue
        if isinstance(inner, (int, float)):
            found[path] = np.int32 if isinstance(inner, int) else np.float32
        elif isinstance(inner, Mapping) or (dataclasses.is_dataclass(inner) and not callable(inner)):
            found |= sweepable(inner, f"{path}.")
    return found


def with_values(recipe: Recipe, numbers: Mapping[str, Any]) -> Recipe:
    """The recipe of one replica, checked as any other.

    Raises:
      UserError: a number is out of range.
    """
    alone = _unchecked(recipe, numbers)
    parts = {name: dataclasses.replace(getattr(alone, name)) for name in ("optimizer", "schedule", "task")}
    return dataclasses.replace(alone, replicas=1, sweep={}, **parts)


def _unchecked(recipe: Any, numbers: Mapping[str, Any]) -> Any:
    """`recipe` with these numbers, which may be traced, at their paths."""
    changed = dict(recipe) if isinstance(recipe, Mapping) else copy.copy(recipe)
    for path, value in numbers.items():
        name, _, rest = path.partition(".")
        if isinstance(changed, dict):
            changed[name] = value
        else:
            inner = _unchecked(getattr(changed, name), {rest: value}) if rest else value
            object.__setattr__(changed, name, inner)
    return changed


def keep_best(
    directory: Path,
    recipe: Recipe,
    replicas: Replicas,
    state: TrainState,
    scores: Sequence[Mapping[str, float]],
) -> None:
    """Writes the best replica to ``directory/best`` as a run of its own, which all commands take."""
    metric = recipe.task.metric
    i = max(range(replicas.count), key=lambda i: scores[i][metric])
    alone = with_values(recipe, {path: column[i].item() for path, column in replicas.values.items()})
    rundir.prepare(directory / "best", alone, source=None, resume=False, overwrite=True).discard()
    checkpoints = Checkpoints(directory / "best" / "checkpoints", keep=1, metric=metric)
    own = pick(state, i)
    checkpoints.save(int(own.step), own, scores[i])
    checkpoints.close()


def _training(recipe: Recipe, model: Model, steps: int, image_size: int) -> Training:
    resized = (functools.partial(augment.resize, size=image_size),) if image_size else ()
    schedule = recipe.schedule.build(recipe.optimizer.learning_rate, steps)
    return Training(
        model, recipe.task, recipe.optimizer.build(schedule), schedule, augment.chain(*resized, *recipe.augment),
        recipe.seed, recipe.optimizer.accumulate, recipe.optimizer.averaging(steps, steps / recipe.epochs),
        recipe.remat, recipe.non_finite, recipe.precision, recipe.lowering,
    )  # fmt: skip
