"""What a classifier does to each class: the confusion matrix, and precision, recall and F1 that follow from it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """Counts of a whole split. A ratio without a denominator is NaN: the precision of a class never predicted."""

    class_names: tuple[str, ...]
    confusion: np.ndarray
    """(classes, classes) int64: examples of the class of the row that were taken for that of the column."""

    @classmethod
    def of(cls, labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> "ClassReport":
        """The report of labels and predictions, (N,) integers each."""
        size = len(class_names)
        pairs = labels.astype(np.int64) * size + predicted
        return cls(tuple(class_names), np.bincount(pairs, minlength=size * size).reshape(size, size))

    @property
    def support(self) -> np.ndarray:
        """(classes,) examples of each class."""
        return self.confusion.sum(1)

    @property
    def predictions(self) -> np.ndarray:
        """(classes,) how often each class was predicted."""
        return self.confusion.sum(0)

    @property
    def precision(self) -> np.ndarray:
        """(classes,) share of the predictions of a class that are right."""
        return _ratio(self.confusion.diagonal(), self.predictions)

    @property
    def recall(self) -> np.ndarray:
        """(classes,) share of the examples of a class that are found."""
        return _ratio(self.confusion.diagonal(), self.support)

    @property
    def f1(self) -> np.ndarray:
        """(classes,) harmonic mean of precision and recall: 2 right / (examples + predictions)."""
        return _ratio(2 * self.confusion.diagonal(), self.support + self.predictions)

    @property
    def accuracy(self) -> float:
        """Share of all examples that are right."""
        return float(_ratio(self.confusion.trace(), self.confusion.sum()))

    def means(self) -> dict[str, float]:
        """Precision, recall and F1, the plain means over the classes that have examples (macro averages).

        There a class that is never predicted has precision 0.
        """
        there = self.support > 0
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {
            name: float(np.nan_to_num(column[there]).mean()) if there.any() else float("nan")
            for name, column in columns.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a class: name, precision, recall, f1, support and predictions."""
        columns = zip(
            self.class_names,
            self.precision,
            self.recall,
            self.f1,
            self.support,
            self.predictions,
            strict=True,
        )
        names = ("name", "precision", "recall", "f1", "support", "predictions")
        return [
            {name: x if isinstance(x, str) else x.item() for name, x in zip(names, row, strict=True)}
            for row in columns
        ]

    def confused(self, count: int) -> list[tuple[str, str, int]]:
        """The pairs of classes that are confused most: (true, predicted, examples), most often first."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(i, wrong.shape) for i in order]
        return [
            (self.class_names[row], self.class_names[column], int(wrong[row, column]))
            for row, column in pairs
            if wrong[row, column]
        ]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above / np.asarray(below, np.float64))
