"""The steps of a route that learn: training on, and another model that is to learn from the first."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import jax

from jaxaccel.errors import UserError, option
from jaxaccel.flags import Call
from jaxaccel.initial import start
from jaxaccel.optim import Sparse
from jaxaccel.options import Positive, Share
from jaxaccel.route.stage import Setting, Stage, inference, trained, zeros
from jaxaccel.route.step import Step
from jaxaccel.route.tuning import fine_tuned
from jaxaccel.step import Precision
from jaxaccel.teacher import Distill
from jaxaccel.trees import with_leaves


@dataclasses.dataclass(frozen=True)
class FineTune(Step):
    """Trains on, as the model was trained but for what stands here. What was pruned stays zero."""

    epochs: Positive = 1.0
    """Passes over the training split."""
    rate: Positive = 0.1
    """Highest learning rate, as a share of the recipe's; it falls by a cosine."""
    warmup: Share = 0.0
    """Share of the steps in which it rises first."""
    split: str = ""
    """Of the training data, train[:10000] for instance; empty for the whole."""
    sparse: Sparse = Sparse()
    """Pruning while training; without any, weights stay zero that an earlier step pruned."""
    teacher: str = ""
    """Who is learned from besides: origin, or another run or file of weights; empty for nobody."""
    teacher_model: Call | None = None
    """What makes the teacher's model where that is a file; by default that of the training recipe. A run knows its own,
    as does the origin."""
    temperature: Positive = 4.0
    """Of the teacher's soft targets."""
    soft: Share = 0.9
    """Weight of the soft targets in the loss; the labels have the rest."""
    precision: Literal[""] | Precision = ""
    """Of the training; empty for that of the recipe."""

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
        there = zeros(stage.variables["params"], stage.pruned)
        keep = there and not self.sparse.on
        fixed = Sparse(method="fixed", where=f"{{{','.join(there)}}}")
        return fine_tuned(stage, setting, name, self, fixed if keep else self.sparse)


@dataclasses.dataclass(frozen=True)
class Student(Step):
    """Puts another, smaller model in place, which is to learn from the first one: ``--fine-tune.teacher origin``."""

    same_function: ClassVar[bool] = False
    model: Call | None = None
    """What makes it: resnet20, or my_package.models.MyNet(width=16)."""
    init_from: Path | None = None
    """A run or a file with weights to begin with; without, it begins with random ones."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The student's stage."""
        if self.model is None:
            raise UserError(f"name the student's model: {option(f'{name}.model')}, resnet20 for instance")
        model = setting.model(self.model)
        params, state = jax.jit(model.init)(jax.random.key(setting.training.seed))
        variables = {"params": params, "model_state": state}
        if self.init_from is None:
            return Stage(self.model, variables, inference(model))
        found = start(self.init_from, model, setting.inputs(setting.batch), setting.task.headline)
        return trained(self.model, with_leaves(variables, found.weights), model)
