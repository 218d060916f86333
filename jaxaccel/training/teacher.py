"""A teacher: a model that was trained before, which another one learns from while it trains."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.options import NonNegative, Options, Positive, Share
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import Model, abstract_variables
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.task import Batch, Task
from jaxaccel.training.function_names import Call
from jaxaccel.transforms.distill import Distillation, Hint

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Distill(Options):
    """What the model learns from another one, which sees the same augmented batches.

    That both see the same views is what Beyer et al. 2022 (arXiv:2106.05237) found to matter, and patience.
    """

    teacher: Path | None = None
    """Learn from the best checkpoint of the run in this directory, or from a file of weights (safetensors,
    npz, PyTorch)."""
    model: Call | None = None
    """Make the teacher with this where it is a file of weights [default: the recipe's own model]; a run knows
    its own."""
    temperature: Positive = 4.0
    """Divide both models' logits by this number for the soft targets (Hinton, Vinyals & Dean 2015,
    arXiv:1503.02531)."""
    soft: Share = 0.9
    """Weight of the soft targets in the loss; the task's own loss has the rest."""
    attention: Mapping[str, NonNegative] = dataclasses.field(default_factory=dict)
    """Make products of weights strong where the teacher's are (Zagoruyko & Komodakis 2017, arXiv:1612.03928),
    by path and with the weight of each in the loss: stages/2/0/conv2/kernel 1.0, or STUDENT=TEACHER 1.0 where
    paths differ."""

    def __post_init__(self) -> None:
        """Takes an empty path for none, and checks the fields."""
        object.__setattr__(self, "teacher", self.teacher or None)
        super().__post_init__()

    def check_values(self) -> None:
        """Checks that there is a teacher where anything is asked of one."""
        asked = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) not in (f.default, {})]
        if asked and self.teacher is None:
            raise UserError(
                f"{option(asked[0])} is for a teacher: name a run or a file with {option('teacher')}"
            )

    def hints(self) -> tuple[Hint, ...]:
        """The features to learn from."""
        pairs = [(*path.partition("=")[::2], weight) for path, weight in self.attention.items()]
        return tuple(Hint(ours, theirs or ours, "attention", weight) for ours, theirs, weight in pairs)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Another model beside the one that trains, in evaluation mode."""

    model: Model
    task: Task
    """What the teacher was trained for: it may standardize its inputs in another way."""
    options: Distill

    def blank(self) -> dict[str, PyTree]:
        """Zeros in the place of its weights: ``params`` and ``model_state``."""
        params, model_state = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), abstract_variables(self.model)
        )
        return {"params": params, "model_state": model_state}

    def teach(
        self,
        student: Callable[[PyTree, Batch], tuple[jax.Array, Any]],
        weights: PyTree,
        ours: Task | None = None,
    ) -> Callable[[PyTree, Batch], tuple[Any, Mean]]:
        """`student` that also returns what to lower besides the task's loss.

        Args:
          student: (params, batch) -> (logits (B, ..., classes), anything).
          weights: as `blank` has them.
          ours: the student's task, which makes the batches; by default the teacher's.

        Returns:
          (params, batch) -> ((logits, anything), the mean over the predictions that count).
        """

        task = ours or self.task

        def teacher(params: PyTree, batch: Batch) -> jax.Array:
            inputs = self.task.inputs(task.teacher_batch(batch))
            key = jax.random.key(0)  # unused in evaluation mode
            return self.model.apply(params, weights["model_state"], *inputs, key=key, train=False)[0]

        options = self.options
        both = Distillation(
            student, teacher, options.temperature, options.soft, options.hints(), has_aux=True
        )

        def taught(params: PyTree, batch: Batch) -> tuple[Any, Mean]:
            outputs, terms = both(params, weights["params"], batch)
            counts = task.weights(batch)
            return outputs, Mean.of(terms.reshape(*counts.shape, -1).mean(-1), counts)

        return taught

    def weighed(self, loss: jax.Array | Mean, lesson: Mean) -> jax.Array | Mean:
        """What to minimize: the rest of the task's loss, and the lesson, in which the soft targets have their share."""
        rest = 1 - self.options.soft
        if isinstance(loss, Mean):
            return Mean(rest * loss.total + lesson.value() * loss.count, loss.count)
        return rest * loss + lesson.value()
