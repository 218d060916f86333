"""What a run returns."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxaccel.core.files import read_json
from jaxaccel.core.options import Count, checked
from jaxaccel.errors import UserError
from jaxaccel.tasks import Task
from jaxaccel.tasks.prediction import BATCH, predict
from jaxaccel.training import plot
from jaxaccel.training.data_record import compare_data
from jaxaccel.training.facts import Facts
from jaxaccel.training.messages import scores_text
from jaxaccel.training.progress import is_over
from jaxaccel.training.replicas import Replicas, pick_replica
from jaxaccel.training.run_directory import check_same
from jaxaccel.training.run_setup import RunSetup
from jaxaccel.training.saved_checkpoints import CHECKPOINTS, read_state
from jaxaccel.training.state import TrainState
from jaxaccel.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished (or, by SIGTERM, interrupted) run."""

    directory: Path
    summary: dict[str, Any]
    """What result.json holds."""
    training: Trainer
    state: TrainState
    facts: Facts
    """What the run keeps of its data set."""

    @property
    def task(self) -> Task:
        """What the model does."""
        return self.training.task

    @checked
    def predict(self, given: Any, *, batch: Count = BATCH, **options: Any) -> Any:
        """The task's predictions, NumPy arrays: logits (B, classes) for images and texts, (classes,) for a single one.

        Of several replicas they are stacked, (replicas, B, classes).

        Args:
          given: images of any dtype with levels from 0 to 255, files or Pillow images, or texts, one or many; of other
            tasks arrays, by name. `ImageClassification.bring` has the rules.
          batch: how many are computed at a time.
          options: of the task's `bring`; ``white=1`` of images with pixels in [0, 1].

        Raises:
          UserError: the model does not take that; the message says what it takes.
        """
        compute = functools.partial(self._predict, self.state.weights(), self.state.model_state)
        axis = 1 if isinstance(self.training, Replicas) else 0
        return predict(self.task, self.facts.example, compute, given, size=batch, axis=axis, **options)

    def replica(self, i: int) -> "TrainResult":
        """One of several that trained at once, as if it had trained alone."""
        if not isinstance(self.training, Replicas):
            raise IndexError("this run has no replicas: it is its own only one")
        return dataclasses.replace(self, training=self.training.alone(i), state=pick_replica(self.state, i))

    @functools.cached_property
    def _predict(self) -> Callable[..., Any]:
        return jax.jit(self.training.predict)

    def __repr__(self) -> str:
        at = f"step {self.summary.get('steps', '?')}" + (
            "" if self.summary.get("finished") else ", not finished"
        )
        return f"TrainResult({self.directory}: {at}, {scores_text(self.summary.get('eval', {}))})"


def find_finished(setup: RunSetup) -> TrainResult | None:
    """Finds the result of a run that has come to its end, which is only read; None where something is left to do.

    Raises:
      UserError: the run there is of another recipe, or of other data.
    """
    directory, recipe = setup.directory, setup.recipe
    try:
        summary = read_json(directory / "result.json")
    except (UserError, FileNotFoundError):  # it is computed anew
        return None
    if not summary.get("finished") or not isinstance(summary.get("eval"), dict):
        return None
    check_same(directory, recipe)
    found = read_state(directory / CHECKPOINTS, setup.state, setup.shardings)
    if found is None or not is_over(setup, found[0]):
        return None
    compare_data(directory, recipe.data.name, setup.problem.splits.digest)
    if jax.process_index() == 0:
        scores = scores_text(summary["eval"])
        if not (directory / "curves.png").is_file():
            with contextlib.suppress(OSError):
                plot.draw(directory, f"{recipe.name}: {scores}", recipe.task.headline)
        print(f"{directory} is finished: {scores}; see {directory}/curves.png")
    return TrainResult(directory, summary, setup.trainer, found[1], setup.problem.facts)
