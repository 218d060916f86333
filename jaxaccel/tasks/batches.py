"""A split of a data set as a task's batches, in its order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.data.examples import read_elements
from jaxaccel.data.source import Source
from jaxaccel.tasks.task import Task

Batch = dict[str, Any]
"""Arrays of the host."""


def iterate_batches(source: Source, task: Task, size: int, count: int | None = None) -> Iterator[Batch]:
    """The first `count` examples of a split as a task's batches, all of `size`: the last is filled up, with mask 0."""
    total = len(source) if count is None else min(count, len(source))
    for start in range(0, total, size):
        there = range(start, min(start + size, total))
        rows = make_elements(task, source, there)
        yield stack_examples([*rows, *[rows[0] | {"mask": np.float32(0)}] * (size - len(rows))])


def stack_examples(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Examples as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def fit_length(bounds: Sequence[int], length: int) -> int:
    """The least of the rising `bounds` into which so long an example fits; the greatest where none is."""
    return next((bound for bound in bounds if bound >= length), bounds[-1])


def make_elements(task: Task, source: Source, indices: range) -> list[dict[str, Any]]:
    """Examples of the data set as a task's, with what every batch has besides."""
    found = read_elements(source, task.element, indices)
    if bounds := task.bounds:
        length = fit_length(bounds, max(map(task.length, found)))
        found = [task.pad(row, length) for row in found]
    rows = zip(indices, found, strict=True)
    return [row | {"index": np.int32(i), "epoch": np.int32(0), "mask": np.float32(1)} for i, row in rows]
