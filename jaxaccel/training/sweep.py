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

from jaxaccel import augment
from jaxaccel.core.calls import nearest
from jaxaccel.core.options import annotations_of, plain_type
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import Model
from jaxaccel.optim import sparse
from jaxaccel.optim.freeze import without_gradient
from jaxaccel.optim.optimizer import LINE_SEARCH
from jaxaccel.training import rundir
from jaxaccel.training.checkpoint import Checkpoints
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas, numbers_of, pick
from jaxaccel.training.saved import CHECKPOINTS
from jaxaccel.training.state import TrainState
from jaxaccel.training.step import Training
from jaxaccel.training.teacher import Teacher

FIXED = (
    "epochs", "batch_size", "steps_per_call", "eval_every", "keep", "patience", "replicas", "optimizer.accumulate",
    "optimizer.reestimate", "task.image_size", "data.", "mesh.", "sparse.",
)  # fmt: skip
"""Numbers that shape the program or the run around it: they cannot differ between replicas of one."""


def training_of(
    recipe: Recipe,
    model: Model,
    ends: Sequence[int],
    mesh: Mesh,
    image_size: int = 0,
    teacher: Teacher | None = None,
) -> Training | Replicas:
    """What trains `recipe`, whose epochs end at these steps, on images that are resized where `image_size` is not 0.

    Raises:
      UserError: the sweep names no number of the recipe, or one that cannot differ within one program.
    """
    values = points(recipe)
    if not values:
        return _training(recipe, model, ends, image_size, teacher)
    # Whatever is wrong with one of them is said as for a run alone.
    each = [with_values(recipe, numbers_of(values, i)) for i in range(len(values["seed"]))]
    alone = [_training(one, model, ends, image_size, teacher) for one in each]
    jax.eval_shape(alone[0].init)

    def make(numbers: Mapping[str, Any]) -> Training:
        return _training(_unchecked(recipe, numbers), model, ends, image_size, teacher)

    fixed = [path for path, column in values.items() if not _may_differ(make, path, column)]
    if fixed:
        raise UserError(
            f"{' and '.join(fixed)} decides what is compiled and cannot differ within one program: train one run for "
            "each value"
        )
    return Replicas(make, values, mesh)


def _may_differ(make: Callable[[Mapping[str, Any]], Training], path: str, column: np.ndarray) -> bool:
    """Whether a training can be made without knowing the number at `path`."""
    number = jax.ShapeDtypeStruct((), np.int32 if column.dtype.kind == "i" else np.float32)
    try:
        jax.eval_shape(lambda number: make({path: number}).init(), number)
    except (jax.errors.ConcretizationTypeError, TypeError):
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
            raise UserError(f"the sweep names the seeds already: leave out {option('replicas')}")
        axes["seed"] = tuple(recipe.seed + i for i in range(recipe.replicas))
    if not axes:
        return {}
    axes = axes if "seed" in axes else {"seed": (recipe.seed,), **axes}
    numbers = sweepable(recipe)
    if recipe.optimizer.name in LINE_SEARCH and "optimizer.learning_rate" in axes:
        raise UserError(f"sweep: {recipe.optimizer.name} searches for the length of its steps itself")
    for path, found in axes.items():
        if path.startswith(FIXED):
            raise UserError(f"sweep: {path} decides the shape of the run and is the same for all replicas")
        if path not in numbers and path.startswith("optimizer.args."):
            name = path.rpartition(".")[2]
            raise UserError(f"sweep: give {path} a value first, with {option('optimizer.args')} {name} VALUE")
        if path not in numbers:
            raise UserError(f"sweep: {path} is no number of the recipe{nearest(path, list(numbers))}")
        if not found:
            raise UserError(f"sweep: {path} has no values")
        if not np.isfinite(found).all():
            raise UserError(f"sweep: {path} takes finite numbers")
        if numbers[path] is int and any(x != int(x) or abs(x) >= 2**31 for x in found):
            raise UserError(f"sweep: {path} takes whole numbers below 2**31")
    rows = list(itertools.product(*axes.values()))
    return {
        path: np.array([row[i] for row in rows], np.int32 if numbers[path] is int else np.float64)
        for i, path in enumerate(axes)
    }


def sweepable(value: Any, prefix: str = "") -> dict[str, type]:
    """{path: int or float} of the numbers of a recipe that may differ between replicas."""
    found: dict[str, type] = {}
    for name, inner, declared in _parts(value):
        path = f"{prefix}{name}"
        if path.startswith(FIXED) or f"{path}.".startswith(FIXED) or isinstance(inner, bool):
            continue
        if isinstance(inner, (int, float)):
            found[path] = int if declared is int else float
        elif isinstance(inner, Mapping) or (dataclasses.is_dataclass(inner) and not callable(inner)):
            found |= sweepable(inner, f"{path}.")
    return found


def _parts(value: Any) -> list[tuple[str, Any, Any]]:
    """(name, value, declared type) of the fields of a dataclass, or of the entries of a mapping."""
    if isinstance(value, Mapping):
        return [(name, inner, float) for name, inner in value.items()]
    declared = annotations_of(type(value))
    return [(name, getattr(value, name), plain_type(annotation)) for name, annotation in declared.items()]


def with_values(recipe: Recipe, numbers: Mapping[str, Any]) -> Recipe:
    """The recipe of one replica, checked as any other.

    Raises:
      UserError: a number is out of range.
    """
    alone = _unchecked(recipe, numbers)
    parts = ("optimizer", "schedule", "task", "distill")
    checked = {name: dataclasses.replace(getattr(alone, name)) for name in parts}
    return dataclasses.replace(alone, replicas=1, sweep={}, **checked)


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
    source: Path | None,
    replicas: Replicas,
    state: TrainState,
    scores: Sequence[Mapping[str, float]],
) -> int:
    """Writes the best replica to ``directory/best`` as a run of its own, which all commands take; which one it is."""
    best = replicas.best(scores, state, recipe.task.headline)
    alone = with_values(recipe, numbers_of(replicas.values, best))
    # From the host, where it is split over devices: no small program for each array.
    own = pick(jax.device_get(state) if jax.process_count() == 1 else state, best)
    # Its recipe alone leaves out what is 0 there: an average, and parts of the optimizer that have no arrays.
    shape = jax.eval_shape(replicas.alone(best).init)
    own = dataclasses.replace(own, average=None) if shape.average is None else own
    own = jax.tree.unflatten(jax.tree.structure(shape), jax.tree.leaves(own))
    with rundir.claimed(directory / "best", alone, source=source, overwrite=True) as claim:
        claim.begin()
        rundir.keep_teacher(directory / rundir.TEACHER, directory / "best")
        checkpoints = Checkpoints(
            directory / "best" / CHECKPOINTS, keep=1, metric=recipe.task.metric, better=recipe.task.better
        )
        checkpoints.save(int(own.step), own, scores[best])
        checkpoints.close()
    return best


def _training(
    recipe: Recipe, model: Model, ends: Sequence[int], image_size: int, teacher: Teacher | None
) -> Training:
    steps = ends[-1]
    resized = (functools.partial(augment.resize, size=image_size),) if image_size else ()
    schedule = recipe.schedule.build(recipe.optimizer.learning_rate, steps)
    pruned = functools.partial(sparse, how=recipe.sparse, steps=steps, seed=recipe.seed)
    tx = recipe.optimizer.build(schedule, steps, pruned if recipe.sparse.on else None, recipe.seed)
    if recipe.optimizer.freeze:
        model = model._replace(apply=_frozen(model.apply, recipe.optimizer.freeze))
    return Training(
        model, recipe.task, tx, schedule,
        augment.chain(*resized, *recipe.augment), recipe.seed, recipe.optimizer.accumulate,
        recipe.optimizer.averaging(ends), recipe.remat, recipe.non_finite, recipe.precision,
        recipe.lowering, teacher and dataclasses.replace(teacher, options=recipe.distill),
    )  # fmt: skip


def _frozen(apply: Callable[..., Any], where: Sequence[str]) -> Callable[..., Any]:
    """A model's function whose backward pass leaves out the parameters that do not change."""
    return lambda params, *args, **kwargs: apply(without_gradient(params, where), *args, **kwargs)
