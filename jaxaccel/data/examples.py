"""Examples as a task wants them, their labels checked: the one way from a source to batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.data.source import Example, Source
from jaxaccel.errors import UserError

Item = dict[str, np.ndarray]
Element = Callable[[Any], Item]
READ_EXAMPLES = 512
"""Examples that are read at a time where a whole split is."""


@dataclasses.dataclass(frozen=True)
class Padded:
    """An `Element` whose arrays are filled up to one length."""

    element: Element
    pad: Callable[[Item, int], Item]
    length: int

    def __call__(self, example: Any) -> Item:
        """The arrays of one example."""
        return self.pad(self.element(example), self.length)


def read_elements(source: Source, element: Element, indices: Sequence[int]) -> list[Item]:
    """``element(example)`` of the examples at `indices`.

    Raises:
      UserError: an example cannot be read, or the label of a class that the task asks for is none of the data set's.
    """
    examples = source.__getitems__(indices)
    elements = [element(example) for example in examples]
    for key, classes in class_counts(source).items():
        if elements and key in elements[0]:
            for index, example in zip(indices, examples, strict=True):
                if not 0 <= example[key] < classes:
                    raise UserError(_wrong_label(source, index, example, key, classes))
    return elements


def read_column(source: Source, key: str) -> Iterator[np.ndarray]:
    """One part of every example of a split, in its order; where the source can, nothing else is read or decoded."""
    own = getattr(source, "read_column", None)
    if own is not None:
        yield from own(key)
        return
    for start in range(0, len(source), READ_EXAMPLES):
        for example in source.__getitems__(range(start, min(start + READ_EXAMPLES, len(source)))):
            yield example[key]


def class_counts(source: Source) -> Mapping[str, int]:
    """{key: number of classes} of each class label in an example."""
    return {key: f.num_classes for key, f in source.features.items() if getattr(f, "num_classes", None)}


def _wrong_label(source: Source, index: int, example: Example, key: str, classes: int) -> str:
    named = f" ({example['id'].item().decode(errors='replace')})" if "id" in example else ""
    return (
        f"example {index}{named} of {source.split!r} of data set {source.name!r} has {key} {example[key]}, and there "
        f"are {classes} classes, 0 to {classes - 1}: correct it, or choose another split"
    )
