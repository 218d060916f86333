"""Training on the way: a recipe made of how the model was trained and of what the step says."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxaccel.compress import trainable, with_trained
from jaxaccel.compress.unpack import is_packed
from jaxaccel.errors import UserError
from jaxaccel.loop import train
from jaxaccel.optim import Schedule, Sparse
from jaxaccel.packed import packed
from jaxaccel.recipe import Recipe
from jaxaccel.route.stage import Setting, Stage, batches
from jaxaccel.teacher import Distill
from jaxaccel.transforms import compressed

if TYPE_CHECKING:
    from jaxaccel.route.learning import FineTune

PyTree = Any
NOT_TAKEN = (
    "name", "epochs", "schedule", "sparse", "distill", "phases", "eval_every", "patience", "keep", "replicas", "sweep",
    "optimizer.lookahead", "optimizer.ema", "optimizer.swa", "optimizer.reestimate",
)  # fmt: skip
"""What of the training a fine-tuning has its own of, or goes without (`recipe_of`)."""
OF_THE_STEP = {
    "optimizer.learning_rate": "rate",
    "distill.teacher": "teacher",
    "distill.model": "teacher_model",
    "sparse": "sparse",
}
"""A fine-tuning's own options for what a recipe calls otherwise."""


def fine_tuned(stage: Stage, setting: Setting, name: str, how: "FineTune", sparse: Sparse) -> Stage:
    """The stage after a run of its own in the route's directory, which goes on where it was stopped."""
    directory = setting.directory / name
    begun = any(directory.glob("checkpoints/*"))
    recipe = recipe_of(stage, setting, name, how, sparse)
    try:
        result = train(recipe, run=directory, resume=begun, overwrite=not begun, trust=setting.trust)
    except UserError as error:
        of_route = error.renamed(partial(renamed, step=name))
        raise UserError(f"{name}: {of_route.message}") from error
    if not result.summary["finished"]:
        raise SystemExit(0)  # a signal asked it to stop, and it has said how to go on
    trained, state = jax.device_get((result.state.weights(), result.state.model_state))
    params = with_trained(stage.variables["params"], trained)
    return dataclasses.replace(stage, variables={"params": params, "model_state": state}, file=None)


def renamed(path: str, step: str) -> str:
    """What an option of the training is called in a route, of which `step` is a fine-tuning."""
    for theirs, ours in OF_THE_STEP.items():
        if f"{path}.".startswith(f"{theirs}."):
            return f"{step}.{ours}{path.removeprefix(theirs)}"
    fields = {field.name for field in dataclasses.fields(Recipe)}
    return f"training.{path}" if path.partition(".")[0] in fields else path


def recipe_of(stage: Stage, setting: Setting, name: str, how: "FineTune", sparse: Sparse) -> Recipe:
    """What `how` makes of the recipe that the model was trained by."""
    base = setting.training
    optimizer = dataclasses.replace(
        base.optimizer,
        learning_rate=how.rate * base.optimizer.learning_rate,
        lookahead=0,
        ema=0,
        swa=0,
        reestimate=0,
    )
    data = dataclasses.replace(base.data, train_split=how.split) if how.split else base.data
    return dataclasses.replace(
        base, name=name, model=partial(packed, file=str(stage.file), model=stage.factory), epochs=how.epochs, data=data,
        optimizer=optimizer, schedule=Schedule(name="cosine", warmup=how.warmup), sparse=sparse, eval_every=how.epochs,
        patience=0, precision=how.precision or base.precision, keep=1, replicas=1, sweep={},
        phases=type(base.phases)(), distill=_distill(setting, how),
    )  # fmt: skip


def _distill(setting: Setting, how: "FineTune") -> Distill:
    if not how.teacher:
        return Distill()
    whom = setting.origin if how.teacher == "origin" else Path(how.teacher)
    model = how.teacher_model
    if model is None and not whom.is_dir():
        model = setting.training.model
        if is_packed(whom):  # its weights may be thinner than the model's own, or of low rank
            model = partial(packed, file=str(whom), model=model)
    return Distill(teacher=whom, model=model, temperature=how.temperature, soft=how.soft)


def mean_gradient(stage: Stage, setting: Setting, count: int) -> PyTree:
    """The gradient of the task's loss over the first `count` training examples, in inference mode."""
    task = setting.task

    @jax.jit
    def gradient(params: PyTree, batch: Any) -> PyTree:
        f = compressed(stage.of_params())

        def loss(moved: PyTree) -> jax.Array:
            return task.loss(f(with_trained(params, moved), *task.inputs(batch)), batch)[0]

        return jax.grad(loss)(trainable(params))

    size = min(setting.batch, count)
    total, number = None, 0
    for batch in batches(setting.train, task, size, count // size * size):
        found = gradient(stage.variables["params"], batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        number += 1
    return jax.tree.map(lambda g: g / number, total)
