"""A model's predictions, and a whole split evaluated: metrics and, where the task says more, a report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxaccel.data.source import Source
from jaxaccel.models.bound import Bound
from jaxaccel.tasks.batches import iterate_batches
from jaxaccel.tasks.metrics import add
from jaxaccel.tasks.rows import Evaluated, split_rows
from jaxaccel.tasks.task import Task, summarize_split

PyTree = Any
Run = Callable[..., PyTree]
"""(params, *inputs) -> outputs, in inference; ``method=NAME`` calls that method of the model."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came of one split."""

    metrics: Mapping[str, float]
    """As in result.json."""
    report: Any
    """What the task's `report` made of it: a `jaxaccel.tasks.class_report.ClassReport`, or None."""
    judged: Mapping[str, np.ndarray]
    """What the task's `judge` kept of each example, in the order of the split."""
    examples: int
    """How many there are."""


def compile_predict(task: Task, run: Run) -> Callable[[PyTree, Any], PyTree]:
    """Compiles (params, batch) -> the task's predictions of a batch of its elements."""

    def predict(params: PyTree, batch: Any) -> PyTree:
        return task.predict(Bound(run, params), task.features(batch))

    return jax.jit(predict)


def evaluate_metrics(
    task: Task, run: Run, params: PyTree, source: Source, size: int, advance: Callable[[], Any]
) -> dict[str, float]:
    """The task's metrics over all of `source`, in batches of `size`; `advance()` is called after each."""

    @jax.jit
    def evaluate(params: PyTree, batch: Any) -> Evaluated:
        batch = task.features(batch)
        return split_rows(task.evaluate(Bound(run, params), batch), batch)

    found = []
    for batch in iterate_batches(source, task, size):
        found.append(jax.device_get(evaluate(params, batch)))
        advance()
    return _summarize(task, found, source)


def evaluate_with_report(
    task: Task,
    run: Run,
    params: PyTree,
    source: Source,
    size: int,
    facts: Mapping[str, Any],
    advance: Callable[[], Any],
) -> Evaluation:
    """As `evaluate_metrics`, with the task's report."""

    judges = _judges(task)

    @jax.jit
    def both(params: PyTree, batch: Any) -> tuple[Evaluated, PyTree]:
        apply, batch = Bound(run, params), task.features(batch)
        # XLA computes what both need once, but no loop that decodes
        predictions = task.predict(apply, batch) if judges else None
        return split_rows(task.evaluate(apply, batch), batch), predictions

    return _report(task, lambda batch: both(params, batch), source, size, facts, advance)


def evaluate_outputs(
    task: Task,
    predict: Callable[[Mapping[str, Any]], PyTree],
    source: Source,
    size: int,
    facts: Mapping[str, Any],
    advance: Callable[[], Any],
) -> Evaluation:
    """As `evaluate_with_report`, of a task that is judged by its predictions alone.

    Args:
      task: classifies.
      predict: batch of the task's elements, arrays of the host -> the task's predictions.
      source: examples.
      size: of a batch.
      facts: what the task read off its data set.
      advance: called after each batch.
    """

    @jax.jit
    def evaluate(predictions: PyTree, batch: Any) -> Evaluated:
        batch = task.features(batch)  # of which only the labels are used, so nothing else is computed
        return split_rows(task.evaluate(lambda *_: predictions, batch), batch)

    def both(batch: Mapping[str, Any]) -> tuple[Evaluated, PyTree]:
        predictions = predict(batch)
        return evaluate(predictions, batch), predictions

    return _report(task, both, source, size, facts, advance)


def _report(
    task: Task,
    compute: Callable[[Any], tuple[Evaluated, PyTree]],
    source: Source,
    size: int,
    facts: Mapping[str, Any],
    advance: Callable[[], Any],
) -> Evaluation:
    """All of `source` by what `compute` finds and predicts of a batch."""
    found, rows = [], []
    for batch in iterate_batches(source, task, size):
        evaluated, predictions = jax.device_get(compute(batch))
        found.append(evaluated)
        if _judges(task):
            there = batch["mask"] > 0
            rows.append({name: x[there] for name, x in task.judge(predictions, batch).items()})
        advance()
    judged = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}
    return Evaluation(_summarize(task, found, source), task.report(judged, facts), judged, len(source))


def _judges(task: Task) -> bool:
    return type(task).judge is not Task.judge


def _summarize(task: Task, found: Sequence[Evaluated], source: Source) -> dict[str, float]:
    means = add(one.means for one in found)
    return summarize_split(task, means, [one.rows for one in found], source)
