"""A bundle with the task that it does: files, folders and texts in, predictions out, as of a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.core.options import Count, checked
from jaxaccel.data.source import Source
from jaxaccel.deployment.bundle import Bundle, EngineName, open_bundle
from jaxaccel.deployment.manifest import MANIFEST
from jaxaccel.deployment.signature import Engine
from jaxaccel.errors import UserError
from jaxaccel.tasks import Task, prediction
from jaxaccel.tasks.classification import Classification
from jaxaccel.tasks.prediction import Guess
from jaxaccel.training import options_json
from jaxaccel.training.evaluation import Evaluation, evaluate_outputs
from jaxaccel.training.facts import Facts
from jaxaccel.training.file_names import FileNames

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Deployed:
    """An exported model, ready to predict what a person has. `load_bundle` makes one."""

    bundle: Bundle
    task: Task
    """What the model does."""
    facts: Facts
    """What its run kept of the data."""
    engine: Engine
    """What computes it."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits; None where there are no classes."""
        return self.facts.class_names

    @checked
    def predict(self, given: Any, *, batch: Count | None = None, **options: Any) -> PyTree:
        """The task's predictions, NumPy arrays, as `jaxaccel.deployment.Trained.predict` gives them.

        Args:
          given: one example or many.
          batch: how many are brought to the engine at a time, by default as many as its largest batch.
          options: of the task's `bring`.

        Raises:
          UserError: the model does not take that; the message says what it takes.
        """
        size = batch or self.engine.batches[-1]
        return prediction.predict(self.task, self.facts.example, self._compute, given, size=size, **options)

    @checked
    def classify(self, given: Any, *, top: Count = 5, **options: Any) -> list[Guess] | list[list[Guess]]:
        """The most probable classes by name, the most probable first.

        Args:
          given: as `predict` takes it; of a single example the answer is one list.
          top: how many classes to name.
          options: of `predict`.

        Raises:
          UserError: the model does not classify, or does not take that.
        """
        return prediction.classify(self.predict(given, **options), self.class_names, top)

    def report(self, source: Source, *, advance: Callable[[], Any] = lambda: None) -> Evaluation:
        """What the engine gives for a split: the task's metrics, and what it has to say of each class.

        Args:
          source: examples of the model's classes: ``ja.data.open("mnist", "test")``.
          advance: called after each batch.

        Raises:
          UserError: the model does not classify, or the examples have other classes or shapes.
        """
        if not isinstance(self.task, Classification):
            raise UserError(
                f"{self.bundle.place} holds what predicts, and {type(self.task).__name__} is judged by more than that: "
                f"evaluate the run, {self.bundle.manifest.origin.get('run', 'RUN')}"
            )
        source = self.facts.accept(source, self.task, f"{self.bundle.place} was exported for")
        size = self.engine.batches[-1]
        return evaluate_outputs(self.task, self._compute, source, size, self.facts.values, advance)

    def _compute(self, batch: Mapping[str, Any]) -> PyTree:
        inputs = self.bundle.signature.inputs
        outputs = self.engine.run({spec.name: np.asarray(batch[spec.name], spec.dtype) for spec in inputs})
        return next(iter(outputs.values())) if self.bundle.signature.has_sole_output else outputs


def load_bundle(place: Path | str, engine: EngineName = "auto", batches: Sequence[int] = ()) -> Deployed:
    """Opens a bundle together with its task.

    Args:
      place: its directory or zip.
      engine: as of `Bundle.engine`.
      batches: as of `Bundle.engine`.

    Raises:
      UserError: there is none, it is damaged, its task is code of somebody's own, or the engine cannot run here.
    """
    bundle = open_bundle(place)
    where = Path(place) / MANIFEST
    try:
        task = options_json.decode(dict(bundle.manifest.task), Task, FileNames(where, b""), "task")
        facts = Facts.from_json(bundle.manifest.facts, where)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    return Deployed(bundle, task, facts, bundle.engine(engine, batches))
