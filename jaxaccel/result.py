"""What a run returns."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxaccel import curves
from jaxaccel.errors import UserError
from jaxaccel.files import read_json
from jaxaccel.recipe import Recipe
from jaxaccel.replicas import Replicas, pick
from jaxaccel.rundir import check_same
from jaxaccel.saved import CHECKPOINTS, read_state
from jaxaccel.state import TrainState
from jaxaccel.step import Training
from jaxaccel.wording import scores_text


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished (or, by SIGTERM, interrupted) run."""

    directory: Path
    summary: dict[str, Any]
    """What result.json holds."""
    training: Training | Replicas
    state: TrainState

    def predict(self, batch: dict[str, Any]) -> Any:
        """The task's predictions for a batch, as the data set gives it: logits (B, classes) for images.

        Of several replicas they are stacked, (replicas, B, classes).
        """
        return self._predict(self.state.weights(), self.state.model_state, batch)

    def replica(self, i: int) -> "TrainResult":
        """One of several that trained at once, as if it had trained alone."""
        if not isinstance(self.training, Replicas):
            raise IndexError("this run has no replicas: it is its own only one")
        return dataclasses.replace(self, training=self.training.alone(i), state=pick(self.state, i))

    @functools.cached_property
    def _predict(self) -> Callable[..., Any]:
        return jax.jit(self.training.predict)


def finished(
    directory: Path,
    recipe: Recipe,
    training: Training | Replicas,
    shapes: TrainState,
    shardings: TrainState,
    is_over: Callable[[int], bool],
) -> TrainResult | None:
    """The result of a run that has come to its end, which is only read; None where there is something left to do.

    Args:
      directory: of the run.
      recipe: of it.
      training: that of the recipe.
      shapes: of its state.
      shardings: where the state goes.
      is_over: whether a run that has done so many steps has come to its end.

    Raises:
      UserError: the run there is of another recipe.
    """
    try:
        summary = read_json(directory / "result.json")
    except (UserError, FileNotFoundError):  # it is computed anew
        return None
    if not summary.get("finished") or not isinstance(summary.get("eval"), dict):
        return None
    check_same(directory, recipe)
    found = read_state(directory / CHECKPOINTS, shapes, shardings)
    if found is None or not is_over(found[0]):
        return None
    if jax.process_index() == 0:
        scores = scores_text(summary["eval"])
        if not (directory / "curves.png").is_file():
            with contextlib.suppress(OSError):
                curves.draw(directory, f"{recipe.name}: {scores}", recipe.task.headline)
        print(f"{directory} is finished: {scores}; see {directory}/curves.png")
    return TrainResult(directory, summary, training, found[1])
