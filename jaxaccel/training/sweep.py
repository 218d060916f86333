"""The numbers in which replicas of a recipe differ, and the recipe of each."""

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.options import annotations_of, plain_type
from jaxaccel.errors import UserError, option
from jaxaccel.optim.optimizer import LINE_SEARCH
from jaxaccel.training.recipe import Recipe

FIXED = (
    "epochs", "batch_size", "steps_per_call", "eval_every", "keep", "patience", "replicas", "optimizer.accumulate",
    "optimizer.reestimate", "task.image_size", "data.", "mesh.", "sparse.",
)  # fmt: skip
"""Numbers that shape the program or the run around it: they cannot differ between replicas of one."""


def read_points(recipe: Recipe) -> dict[str, np.ndarray]:
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
    numbers = list_sweepable(recipe)
    if recipe.optimizer.name in LINE_SEARCH and "optimizer.learning_rate" in axes:
        raise UserError(f"sweep: {recipe.optimizer.name} searches for the length of its steps itself")
    for path, found in axes.items():
        if path.startswith(FIXED):
            raise UserError(f"sweep: {path} decides the shape of the run and is the same for all replicas")
        if path not in numbers and path.startswith("optimizer.args."):
            name = path.rpartition(".")[2]
            raise UserError(f"sweep: give {path} a value first, with {option('optimizer.args')} {name} VALUE")
        if path not in numbers:
            raise UserError(f"sweep: {path} is no number of the recipe{suggest_nearest(path, list(numbers))}")
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


def list_sweepable(value: Any, prefix: str = "") -> dict[str, type]:
    """{path: int or float} of the numbers of a recipe that may differ between replicas."""
    found: dict[str, type] = {}
    for name, inner, declared in _parts(value):
        path = f"{prefix}{name}"
        if path.startswith(FIXED) or f"{path}.".startswith(FIXED) or isinstance(inner, bool):
            continue
        if isinstance(inner, (int, float)):
            found[path] = int if declared is int else float
        elif isinstance(inner, Mapping) or (dataclasses.is_dataclass(inner) and not callable(inner)):
            found |= list_sweepable(inner, f"{path}.")
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
    alone = replace_unchecked(recipe, numbers)
    parts = ("optimizer", "schedule", "task", "distill")
    checked = {name: dataclasses.replace(getattr(alone, name)) for name in parts}
    return dataclasses.replace(alone, replicas=1, sweep={}, **checked)


def replace_unchecked(recipe: Any, numbers: Mapping[str, Any]) -> Any:
    """`recipe` with these numbers, which may be traced, at their paths."""
    changed = dict(recipe) if isinstance(recipe, Mapping) else copy.copy(recipe)
    for path, value in numbers.items():
        name, _, rest = path.partition(".")
        if isinstance(changed, dict):
            changed[name] = value
        else:
            inner = replace_unchecked(getattr(changed, name), {rest: value}) if rest else value
            object.__setattr__(changed, name, inner)
    return changed
