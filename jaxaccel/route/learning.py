"""The steps of a route that learn: training on, and another model that is to learn from the first."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import jax

from jaxaccel.errors import UserError
from jaxaccel.flags import Call
from jaxaccel.initial import start
from jaxaccel.optim import Sparse
from jaxaccel.route.stage import Setting, Stage, inference, trained, zeros
from jaxaccel.route.step import Step
from jaxaccel.route.tuning import fine_tuned
from jaxaccel.teacher import Distill
from jaxaccel.trees import with_leaves


@dataclasses.dataclass(frozen=True)
class FineTune(Step):
    """Trains on, as the model was trained but for what stands here. What was pruned stays zero."""

    epochs: float = 1.0
    """Passes over the training split."""
    rate: float = 0.1
    """Highest learning rate, as a share of the recipe's; it falls by a cosine."""
    warmup: float = 0.0
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
    temperature: float = 4.0
    """Of the teacher's soft targets."""
    soft: float = 0.9
    """Weight of the soft targets in the loss; the labels have the rest."""
    precision: Literal["", "float32", "bfloat16", "float16", "int8-qat"] = ""
    """Of the training; empty for that of the recipe."""

    def __post_init__(self) -> None:
        """Checks the numbers, and what is asked of a teacher."""
        for name in ("epochs", "rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name):g}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup is a share of the steps, in [0, 1], got {self.warmup:g}")
        if self.sparse.where != Sparse().where and not self.sparse.on:
            raise UserError(
                "sparse.where is for pruning: set sparse.sparsity, or sparse.method to fixed to keep zeros there"
            )
        if self.teacher == "origin" and self.teacher_model:
            raise UserError("teacher_model is for a file: the origin knows its model")
        try:
            teacher = Path(self.teacher) if self.teacher else None
            Distill(teacher, self.teacher_model, self.temperature, self.soft)
        except UserError as error:
            own = str(error).replace("distill.model", "teacher_model").replace("--distill.", "")
            raise UserError(own.replace("distill.", "")) from error

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
            raise UserError(f"name the student's model: --{name}.model resnet20, for instance")
        model = setting.model(self.model)
        params, state = jax.jit(model.init)(jax.random.key(setting.training.seed))
        variables = {"params": params, "model_state": state}
        if self.init_from is None:
            return Stage(self.model, variables, inference(model))
        found = start(self.init_from, model, setting.inputs(setting.batch), setting.task.metric)
        return trained(self.model, with_leaves(variables, found.weights), model)
