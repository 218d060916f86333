"""Several steps in one call of the device, on batches gathered there."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxaccel.tasks.rows import Evaluated, split_rows
from jaxaccel.tasks.task import Batch
from jaxaccel.training.loss import scan
from jaxaccel.training.state import StepMetrics, TrainState
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
    """Makes (weights, model_state, arrays, fed) -> the metrics of all batches of `fed`, as sums, and their rows."""

    def evaluations(weights: PyTree, model_state: PyTree, arrays: Arrays, fed: Batch) -> Evaluated:
        def body(carry: None, item: Batch) -> tuple[None, Evaluated]:
            batch = constrain(gather_batch(arrays, item))
            return None, split_rows(trainer.lowered(trainer.evaluate)(weights, model_state, batch), batch)

        _, found = scan(body, None, dict(fed))
        return Evaluated(jax.tree.map(lambda x: x.sum(0), found.means), found.rows)

    return evaluations


def gather_batch(arrays: Arrays, item: Batch) -> dict[str, jax.Array]:
    """Takes the batch that ``item`` names out of `arrays`; what `item` brings itself stays.

    Its ``row`` counts in `arrays`, where they hold a part of the split, and ``index`` in the split.
    """
    item = dict(item)
    row = item.pop("row", item["index"])
    return {name: array[row] for name, array in arrays.items()} | item
