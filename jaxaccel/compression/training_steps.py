"""The steps of a pipeline that learn: training on, and another model that is to learn from the first.

Training on is a run of its own, by a recipe made of how the model was trained and of what the step says.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxaccel.compression.stage import (
    Setting,
    Stage,
    inference,
    iterate_batches,
    measure_zeros,
    stage_of_trained,
)
from jaxaccel.compression.step import Step
from jaxaccel.core.options import Positive, Share
from jaxaccel.core.paths import with_leaves
from jaxaccel.errors import UserError, option
from jaxaccel.models.packed import packed
from jaxaccel.optim import Schedule, Sparse
from jaxaccel.tasks.metrics import value_of
from jaxaccel.training.function_names import Call
from jaxaccel.training.loop import train
from jaxaccel.training.loss import Precision
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.teacher import Distill
from jaxaccel.training.warm_start import load_start
from jaxaccel.transforms import compressed
from jaxaccel.transforms.params import trainable, with_trained
from jaxaccel.transforms.params.load import is_packed

PyTree = Any
NOT_TAKEN = (
    "name", "epochs", "schedule", "sparse", "distill", "phases", "eval_every", "patience", "keep", "replicas", "sweep",
    "optimizer.lookahead", "optimizer.ema", "optimizer.swa", "optimizer.reestimate",
)  # fmt: skip
"""What of the training a fine-tuning has its own of, or goes without (`make_recipe`)."""
OF_THE_STEP = {
    "optimizer.learning_rate": "rate",
    "distill.teacher": "teacher",
    "distill.model": "teacher_model",
    "sparse": "sparse",
}
"""A fine-tuning's own options for what a recipe calls otherwise."""


@dataclasses.dataclass(frozen=True)
class FineTune(Step):
    """Trains on, as the model was trained but for what stands here. What was pruned stays zero."""

    epochs: Positive = 1.0
    """Train for this many passes over the training split."""
    rate: Positive = 0.1
    """Peak of the learning rate as a share of the recipe's; it falls by a cosine."""
    warmup: Share = 0.0
    """Share of the steps in which the learning rate climbs from 0 to its peak."""
    split: str = ""
    """Train on this part of the training data, such as train[:10000]; empty for the whole."""
    sparse: Sparse = Sparse()
    """Prune while training; without this, weights that an earlier step pruned stay zero."""
    teacher: str = ""
    """Learn also from the outputs of this model: origin, another run, or a file of weights; empty for none."""
    teacher_model: Call | None = None
    """Make the teacher with this function where it is a file of weights [default: the model of the training
    recipe]; a run and the origin know their own."""
    temperature: Positive = 4.0
    """Divide both models' logits by this number for the soft targets."""
    soft: Share = 0.9
    """Weight of the soft targets in the loss; the labels have the rest."""
    precision: Literal[""] | Precision = ""
    """Compute matrix products and convolutions of the training in this precision; empty for the recipe's."""

    def check_values(self) -> None:
        """Checks what is asked of pruning and of a teacher."""
        if self.sparse.where != Sparse().where and not self.sparse.on:
            raise UserError(
                f"{option('sparse.where')} is for pruning: set {option('sparse.sparsity')}, or "
                f"{option('sparse.method', 'fixed')} to keep zeros there"
            )
        if self.teacher == "origin" and self.teacher_model:
            raise UserError(f"{option('teacher_model')} is for a file: the origin knows its model")
        try:
            Distill(
                Path(self.teacher) if self.teacher else None, self.teacher_model, self.temperature, self.soft
            )
        except UserError as error:
            raise error.renamed(lambda path: "teacher_model" if path == "model" else path) from error

    @property
    def prunes(self) -> tuple[str, ...]:
        """As `sparse` says."""
        return (self.sparse.where,) if self.sparse.on else ()

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with what was learned."""
        there = measure_zeros(stage.variables["params"], stage.pruned)
        keep = there and not self.sparse.on
        fixed = Sparse(method="fixed", where=f"{{{','.join(there)}}}")
        return fine_tune(stage, setting, name, self, fixed if keep else self.sparse)


@dataclasses.dataclass(frozen=True)
class Student(Step):
    """Puts another, smaller model in place, which is to learn from the first one: ``--fine-tune.teacher origin``."""

    same_function: ClassVar[bool] = False
    model: Call | None = None
    """Make the student with this: resnet20, or my_package.models.MyNet(width=16)."""
    init_from: Path | None = None
    """Start from the weights of this run or file; without it, from random ones."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The student's stage."""
        if self.model is None:
            raise UserError(f"name the student's model: {option(f'{name}.model')}, resnet20 for instance")
        model = setting.model(self.model)
        params, state = jax.jit(model.init)(jax.random.key(setting.training.seed))
        variables = {"params": params, "model_state": state}
        if self.init_from is None:
            return Stage(self.model, variables, inference(model))
        found = load_start(self.init_from, model, setting.inputs(setting.batch), setting.task.headline)
        return stage_of_trained(self.model, with_leaves(variables, found.weights), model)


def fine_tune(stage: Stage, setting: Setting, name: str, how: FineTune, sparse: Sparse) -> Stage:
    """The stage after a run of its own in the pipeline's directory, which goes on where it was stopped."""
    directory = setting.directory / name
    begun = any(directory.glob("checkpoints/*"))
    recipe = make_recipe(stage, setting, name, how, sparse)
    try:
        result = train(recipe, run=directory, resume=begun, overwrite=not begun, trust=setting.trust)
    except UserError as error:
        of_pipeline = error.renamed(partial(rename_option, step=name))
        raise UserError(f"{name}: {of_pipeline.message}") from error
    if not result.summary["finished"]:
        raise SystemExit(0)  # a signal asked it to stop, and it has said how to go on
    weights, state = jax.device_get((result.state.weights(), result.state.model_state))
    params = with_trained(stage.variables["params"], weights)
    return dataclasses.replace(stage, variables={"params": params, "model_state": state}, file=None)


def rename_option(path: str, step: str) -> str:
    """What an option of the training is called in a pipeline, of which `step` is a fine-tuning."""
    for theirs, ours in OF_THE_STEP.items():
        if f"{path}.".startswith(f"{theirs}."):
            return f"{step}.{ours}{path.removeprefix(theirs)}"
    fields = {field.name for field in dataclasses.fields(Recipe)}
    return f"training.{path}" if path.partition(".")[0] in fields else path


def make_recipe(stage: Stage, setting: Setting, name: str, how: FineTune, sparse: Sparse) -> Recipe:
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
        task=setting.task, optimizer=optimizer, schedule=Schedule(name="cosine", warmup=how.warmup), sparse=sparse,
        eval_every=how.epochs,
        patience=0, precision=how.precision or base.precision, keep=1, replicas=1, sweep={},
        phases=type(base.phases)(), distill=_distill(setting, how),
    )  # fmt: skip


def _distill(setting: Setting, how: FineTune) -> Distill:
    if not how.teacher:
        return Distill()
    whom = setting.origin if how.teacher == "origin" else Path(how.teacher)
    model = how.teacher_model
    if model is None and not whom.is_dir():
        model = setting.training.model
        if is_packed(whom):  # its weights may be thinner than the model's own, or of low rank
            model = partial(packed, file=str(whom), model=model)
    return Distill(teacher=whom, model=model, temperature=how.temperature, soft=how.soft)


def compute_mean_gradient(stage: Stage, setting: Setting, count: int) -> PyTree:
    """The gradient of the task's loss over the first `count` training examples, in inference mode."""
    task = setting.task

    @jax.jit
    def gradient(params: PyTree, batch: Any) -> PyTree:
        f = compressed(stage.of_params())

        batch = task.features(batch)

        def loss(moved: PyTree) -> jax.Array:
            return value_of(task.loss(f(with_trained(params, moved), *task.inputs(batch)), batch)[0])

        return jax.grad(loss)(trainable(params))

    size = min(setting.batch, count)
    total, number = None, 0
    for batch in iterate_batches(setting.train, task, size, count // size * size):
        found = gradient(stage.variables["params"], batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        number += 1
    return jax.tree.map(lambda g: g / number, total)
