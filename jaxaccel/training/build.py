"""From a recipe to what trains it: the optimizer, the schedule, the augmentation and the step are put together here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxaccel.data import augment
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import Model
from jaxaccel.optim import sparse
from jaxaccel.optim.freeze import stop_gradients
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas, pick_numbers
from jaxaccel.training.step import Training
from jaxaccel.training.sweep import read_points, replace_unchecked, with_values
from jaxaccel.training.teacher import Teacher


def build_trainer(
    recipe: Recipe,
    model: Model,
    ends: Sequence[int],
    mesh: Mesh,
    image_size: int = 0,
    teacher: Teacher | None = None,
) -> Training | Replicas:
    """Builds what trains `recipe`: one `Training`, or `Replicas` where it has replicas or a sweep.

    Args:
      recipe: the experiment, its task fitted to the data.
      model: that of the recipe.
      ends: steps after which an epoch is over, the last step of the run as the last one.
      mesh: the devices.
      image_size: to which images are resized on the device, in pixels; 0 leaves them as they are.
      teacher: another model to learn from.

    Raises:
      UserError: the sweep names no number of the recipe, or one that cannot differ within one program.
    """
    values = read_points(recipe)
    if not values:
        return build_training(recipe, model, ends, image_size, teacher)
    # Whatever is wrong with one of them is said as for a run alone.
    each = [with_values(recipe, pick_numbers(values, i)) for i in range(len(values["seed"]))]
    alone = [build_training(one, model, ends, image_size, teacher) for one in each]
    jax.eval_shape(alone[0].init)

    def make(numbers: Mapping[str, Any]) -> Training:
        return build_training(replace_unchecked(recipe, numbers), model, ends, image_size, teacher)

    fixed = [path for path, column in values.items() if not _may_differ(make, path, column)]
    if fixed:
        raise UserError(
            f"{' and '.join(fixed)} decides what is compiled and cannot differ within one program: train one run for "
            "each value"
        )
    return Replicas(make, values, mesh)


def build_training(
    recipe: Recipe, model: Model, ends: Sequence[int], image_size: int = 0, teacher: Teacher | None = None
) -> Training:
    """Builds what trains one model by `recipe`; arguments as of `build_trainer`."""
    steps = ends[-1]
    schedule = recipe.schedule.build(recipe.optimizer.learning_rate, steps)
    pruned = functools.partial(sparse, how=recipe.sparse, steps=steps, seed=recipe.seed)
    optimizer = recipe.optimizer.build(schedule, steps, pruned if recipe.sparse.on else None, recipe.seed)
    if recipe.optimizer.freeze:
        model = model._replace(apply=_frozen(model.apply, recipe.optimizer.freeze))
    resized = (functools.partial(augment.resize, size=image_size),) if image_size else ()
    return Training(
        model=model,
        task=recipe.task,
        tx=optimizer,
        schedule=schedule,
        augment=augment.chain(*resized, *recipe.augment),
        augment_features=augment.chain(*recipe.augment_features),
        seed=recipe.seed,
        accumulate=recipe.optimizer.accumulate,
        averaging=recipe.optimizer.averaging(ends),
        remat=recipe.remat,
        non_finite=recipe.non_finite,
        precision=recipe.precision,
        lowering=recipe.lowering,
        teacher=teacher and dataclasses.replace(teacher, options=recipe.distill),
    )


def _frozen(apply: Callable[..., Any], where: Sequence[str]) -> Callable[..., Any]:
    """A model's function whose backward pass leaves out the parameters that do not change."""
    return lambda params, *args, **kwargs: apply(stop_gradients(params, where), *args, **kwargs)


def _may_differ(make: Callable[[Mapping[str, Any]], Training], path: str, column: np.ndarray) -> bool:
    """Whether a training can be made without knowing the number at `path`."""
    number = jax.ShapeDtypeStruct((), np.int32 if column.dtype.kind == "i" else np.float32)
    try:
        jax.eval_shape(lambda number: make({path: number}).init(), number)
    except (jax.errors.ConcretizationTypeError, TypeError):
        return False
    return True
