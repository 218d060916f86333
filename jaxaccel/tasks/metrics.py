"""Metrics as sums: added across batches, steps and devices, divided once at the end; and which scores are better."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core.options import Options
from jaxaccel.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that is not yet divided: `total` and `count` are float32 arrays of equal shape.

    A shape other than () holds several means at once, such as one per class or per n-gram order.
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """The weighted mean of `values` with `weights` of the same shape, (B,) or (B, ...); weight 0 leaves one out."""
        weights = weights.astype(jnp.float32)
        # `where` and not a bare product: 0 * inf of a padded example would poison the sum.
        kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
        return cls((kept * weights).sum(), weights.sum())

    def value(self) -> jax.Array:
        """total / count, and 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1e-9)


def value_of(loss: jax.Array | Mean) -> jax.Array:
    """A loss as the scalar to minimize."""
    return loss.value() if isinstance(loss, Mean) else loss


Means = Mapping[str, Mean]


def add(means: Iterable[Means]) -> dict[str, Mean]:
    """The sum of several dictionaries of means with the same names.

    Raises:
      ValueError: there is none.
    """
    first, *rest = means
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), dict(first), *map(dict, rest))


Scores = Mapping[str, float]
RESERVED = ("kind", "step", "epoch", "learning_rate", "gradient_norm", "step_seconds", "examples_per_second")
"""What the trainer itself writes in a row of metrics.jsonl."""


@dataclasses.dataclass(frozen=True)
class Headline(Options):
    """The metric that decides which of several models, or of several states of one, is the best."""

    name: str = "accuracy"
    better: Literal["higher", "lower"] = "higher"

    def rank(self, scores: Mapping[str, float | None] | None) -> float:
        """A number that is greater for better scores; -inf where the metric is missing or not finite."""
        value = scores.get(self.name) if scores else None
        if value is None or not math.isfinite(value):
            return -math.inf
        return float(value) if self.better == "higher" else -float(value)

    def best(self, rows: Sequence[Mapping[str, float | None]]) -> int:
        """Which of `rows` is the best, the first of equal ones."""
        return max(range(len(rows)), key=lambda i: self.rank(rows[i]))

    def check(self, task: str, names: Iterable[str]) -> None:
        """Checks that a task called `task`, which reports metrics of these names, reports this one.

        Raises:
          UserError: it does not, or a name is taken by what the trainer reports itself.
        """
        known = list(names)
        if self.name not in known:
            there = ", ".join(known) or "none"
            raise UserError(
                f"{task} is judged by the metric {self.name!r}, which its evaluate() does not report (it reports: "
                f"{there}): set `metric` of {task} to one of them"
            )
        check_names(task, known)


ACCURACY = Headline()


def check_names(task: str, names: Iterable[str]) -> None:
    """Checks that a task called `task` gives none of its metrics a name of the trainer's own.

    Raises:
      UserError: it does.
    """
    if taken := [name for name in names if name in RESERVED]:
        raise UserError(
            f"{task} reports a metric {taken[0]!r}, a name of the trainer's own: call it otherwise"
        )


def as_scores(values: Mapping[str, Any]) -> dict[str, float]:
    """What a task reports, as plain numbers: its own arithmetic may leave arrays of one element."""
    return {name: float(value) for name, value in values.items()}


def score_text(value: float | None) -> str:
    """A metric for people: four decimals where they say something, else four digits."""
    if value is None or math.isnan(value):
        return "nan"
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.4g}"
