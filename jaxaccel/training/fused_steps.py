"""Several steps in one call of the device, on batches gathered there."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.task import Batch
from jaxaccel.training.state import StepMetrics, TrainState
from jaxaccel.training.step import scan
from jaxaccel.training.trainer import Trainer

PyTree = Any
Arrays = Mapping[str, jax.Array]


def fuse_steps(trainer: Trainer, constrain: Callable[[Batch], Batch] = lambda batch: batch) -> Callable:
    """Makes (state, arrays, fed) -> (state, metrics): as many steps in one call as `fed` has rows.

    `fed` holds ``index`` and ``mask`` (k, B), and, where the data is streamed, the batches themselves. Where
    the data set lives on the device, `arrays` holds it and each step gathers its batch there.
    """

    def steps(state: TrainState, arrays: Arrays, fed: Batch) -> tuple[TrainState, StepMetrics]:
        def body(state: TrainState, item: Batch) -> tuple[TrainState, StepMetrics]:
            return trainer.lowered(trainer.step)(state, constrain(gather_batch(arrays, item)))

        return scan(body, state, dict(fed))

    return steps


def fuse_evaluations(trainer: Trainer, constrain: Callable[[Batch], Batch] = lambda batch: batch) -> Callable:
    """Makes (weights, model_state, arrays, fed) -> the metrics of all rows of `fed`, as sums."""

    def evaluations(weights: PyTree, model_state: PyTree, arrays: Arrays, fed: Batch) -> dict[str, Mean]:
        def body(carry: None, item: Batch) -> tuple[None, dict[str, Mean]]:
            evaluate = trainer.lowered(trainer.evaluate)
            return None, evaluate(weights, model_state, constrain(gather_batch(arrays, item)))

        _, means = scan(body, None, dict(fed))
        return jax.tree.map(lambda x: x.sum(0), means)

    return evaluations


def gather_batch(arrays: Arrays, item: Batch) -> dict[str, jax.Array]:
    """Takes the batch that ``item["index"]`` names out of `arrays`; what `item` brings itself stays."""
    return {name: array[item["index"]] for name, array in arrays.items()} | dict(item)
