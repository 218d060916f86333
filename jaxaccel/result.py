"""What a run returns."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxaccel.replicas import Replicas, pick
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


def finished(directory: Path, training: Training | Replicas, state: TrainState) -> TrainResult | None:
    """The result of a run that is resumed at its end, if it wrote one: nothing is done again."""
    path = directory / "result.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not summary.get("finished"):
        return None
    if jax.process_index() == 0:
        print(f"{directory} is finished: {scores_text(summary['eval'])}; see {directory}/curves.png")
    return TrainResult(directory, summary, training, state)
