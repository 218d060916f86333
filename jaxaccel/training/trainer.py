"""What a run asks of what it trains: one model (`step.Training`) or several at once (`replicas.Replicas`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxaccel.data.order import Order
from jaxaccel.tasks.metrics import Mean, Scores
from jaxaccel.tasks.task import Batch, Task
from jaxaccel.training.state import StepMetrics, TrainState

PyTree = Any


class Trainer(Protocol):
    """The functions of a run, pure ones to be compiled and others about shapes and places.

    Where several models train, every array of states, of training batches and of metrics has a leading axis of `count`.
    """

    @property
    def count(self) -> int:
        """How many models train."""
        ...

    @property
    def task(self) -> Task:
        """What the models do."""
        ...

    def init(self, weights: Mapping[str, jax.Array] | None = None) -> TrainState:
        """Makes the state before the first step, from the seed and from `weights` by path, where there are any."""
        ...

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Makes one update."""
        ...

    def evaluate(self, weights: PyTree, model_state: PyTree, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """Computes the task's metrics of one batch, as sums, and its rows."""
        ...

    def observe(self, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
        """Computes the model state after a look at a batch in training mode: BatchNorm statistics nearer to it."""
        ...

    def predict(self, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
        """Computes the task's predictions of one batch."""
        ...

    def lowered(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Gives `f` with its operations in the forms that the devices run fast."""
        ...

    def order(self, make: Callable[[int], Order]) -> Order:
        """Says which examples are in the batch of each step, where `make(seed)` says it of one seed."""
        ...

    def batch_shape(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """Gives the shapes of what `step` takes, from those of one model's batch."""
        ...

    def sharding(self, state: TrainState, mesh: Mesh) -> TrainState:
        """Says where on `mesh` each array of a state of these shapes lies."""
        ...

    def reported(self, mesh: Mesh) -> NamedSharding | None:
        """Says where on `mesh` metrics lie."""
        ...

    def compiler_options(self, flops: float, platform: str) -> dict[str, str | bool]:
        """Gives XLA's options for the program of a step that costs `flops`."""
        ...

    def copies(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Gives `weights`, {path: array}, to every model."""
        ...

    def scores(
        self, means: Mapping[str, Mean], rows: Sequence[Mapping[str, np.ndarray]] = (), source: Any = None
    ) -> list[Scores]:
        """Computes one row of numbers a model, from the sums over all batches and the rows of each.

        Args:
          means: the sums.
          rows: of each call, (batches, B, ...) each, with ``index`` and ``mask``.
          source: the split that they are of.
        """
        ...
