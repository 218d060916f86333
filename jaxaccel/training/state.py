"""What a training step takes and gives: its state, its gradients, and what it reports."""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxaccel.tasks.metrics import Mean
from jaxaccel.transforms import LossScaleState

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes: with the recipe and `step`, all that is needed to go on bit for bit."""

    step: jax.Array
    """() int32: steps done."""
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    average: PyTree
    """Average of the parameters that evaluation uses, or None."""
    halted: jax.Array
    """() bool: a step came out non-finite; the state is as it was before it and no longer moves."""
    loss_scale: LossScaleState | None = None
    """Where training is in float16."""
    teacher: PyTree = None
    """{"params": ..., "model_state": ...} of the model that this one learns from, which never change, or None."""

    def weights(self) -> PyTree:
        """The parameters that evaluation uses: the moving average where there is one, in their dtypes."""
        if self.average is None:
            return self.params
        return jax.tree.map(lambda a, p: a.astype(p.dtype), self.average, self.params)


class StepMetrics(NamedTuple):
    """What one step reports; all are device arrays, fetched later."""

    means: dict[str, Mean]
    learning_rate: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array
    """() bool: nothing is wrong. A step left out because the loss scale was too large is not."""


class Gradients(NamedTuple):
    """Of one batch."""

    loss: jax.Array
    grads: PyTree
    means: dict[str, Mean]
    model_state: PyTree
