"""Pictures of what a classifier takes for what: its confusion matrix, and the mistakes that it is surest of."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.training.plot import BLUE, INK, MUTED, ORANGE

MAX_CLASSES_WITH_COUNTS = 20
"""Classes up to which every cell of the matrix has its count written in."""
MAX_CLASSES_WITH_NAMES = 60
"""Classes up to which every row and column has its name."""
MAX_CLASSES_AS_CELLS = 150
"""Classes up to which cells are large enough to be seen; beyond, each that is not empty is a dot."""
MAX_NAME_LENGTH = 18
"""Letters of a class name that are shown."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example that was taken for another class."""

    index: int
    """Of the example in its split."""
    id: str
    """Its name in the data set, where it has one, else its index."""
    true: str
    predicted: str
    probability: float
    """Of the predicted class."""
    probability_of_true: float
    text: str = ""
    """The example, where it is a text."""


def draw_confusion(path: Path, report: ClassReport, title: str) -> None:
    """Draws the confusion matrix: what is right in blue, what is not in orange, each cell by its share of the row."""
    from matplotlib.figure import Figure

    size = len(report.class_names)
    inches = min(14.0, max(4.6, 2.2 + 0.42 * size))
    figure = Figure(figsize=(inches + 0.6, inches), layout="constrained", dpi=120)
    figure.suptitle(title, color=INK, fontsize=10, fontweight="bold", x=0.01, ha="left", parse_math=False)
    axis = figure.subplots()
    if size <= MAX_CLASSES_AS_CELLS:
        axis.imshow(_colors(report), interpolation="nearest", aspect="equal")
    else:
        _draw_dots(axis, report)
    if size <= MAX_CLASSES_WITH_COUNTS:
        _write_counts(axis, report, 10 if size < 12 else 7)
    step = 1 if size <= MAX_CLASSES_WITH_NAMES else math.ceil(size / 40)
    places, font = range(0, size, step), 9 if size <= MAX_CLASSES_WITH_COUNTS else 7
    names = [_short(report.class_names[i]) for i in places]
    long = max(map(len, names)) * font * 0.6 > 72 * (inches - 2) / len(names)
    axis.set_yticks(places, names, fontsize=font, parse_math=False)
    axis.set_xticks(places, names, fontsize=font, rotation=90 if long else 0, parse_math=False)
    axis.set_xlabel("predicted", color=MUTED, fontsize=9)
    axis.set_ylabel(
        "true class" if step == 1 else f"true class, one in {step} named", color=MUTED, fontsize=9
    )
    axis.tick_params(length=0, labelcolor=INK)
    axis.spines[:].set_visible(False)
    if size <= MAX_CLASSES_WITH_NAMES:
        axis.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", lw=1)
        axis.tick_params(which="minor", length=0)
    figure.savefig(path)


def draw_mistakes(path: Path, mistakes: Sequence[Mistake], images: Sequence[np.ndarray], title: str) -> None:
    """Draws a grid of pictures, each with what it is and what it was taken for.

    Args:
      path: of the PNG file.
      mistakes: what to draw, the first one first.
      images: of each one (H, W, C) uint8.
      title: of the whole.
    """
    from matplotlib.figure import Figure

    columns = max(3, min(6, len(mistakes)))
    rows = math.ceil(len(mistakes) / columns)
    height, width = max((x.shape[:2] for x in images), key=lambda shape: shape[0] / shape[1])
    figure = Figure(
        figsize=(1.75 * columns, 0.5 + (0.62 + 1.65 * height / width) * rows), layout="constrained", dpi=120
    )
    figure.suptitle(title, color=INK, fontsize=10, fontweight="bold", x=0.01, ha="left", parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(mistakes) :]:
        axis.axis("off")
    for axis, mistake, image in zip(axes, mistakes, images, strict=False):
        gray = image.shape[-1] == 1
        shown = image[..., 0] if gray else image[..., :3]
        axis.imshow(shown, cmap="gray" if gray else None, vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(_short(mistake.true), fontsize=8, color=INK, pad=3, parse_math=False)
        taken_for = f"{_short(mistake.predicted)} {100 * mistake.probability:.0f}%"
        axis.set_xlabel(taken_for, fontsize=8, color=ORANGE, labelpad=3, parse_math=False)
    figure.savefig(path)


def _draw_dots(axis: Any, report: ClassReport) -> None:
    size, colors = len(report.class_names), _colors(report)
    rows, columns = np.nonzero(report.confusion)
    order = np.argsort(report.confusion[rows, columns], kind="stable")  # the most frequent ones on top
    rows, columns = rows[order], columns[order]
    axis.scatter(columns, rows, s=6, color=colors[rows, columns], linewidths=0)
    axis.set(
        xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal", facecolor=(0.965, 0.967, 0.975)
    )


def _colors(report: ClassReport) -> np.ndarray:
    """(classes, classes, 3) in [0, 1]; shares are spread by a root, so that few mistakes are seen."""
    rows = np.maximum(report.support, 1)[:, None]
    shares = np.sqrt(report.confusion / rows)[..., None]
    right = np.eye(len(rows), dtype=bool)[..., None]
    ink = np.where(right, _rgb(BLUE), _rgb(ORANGE))
    paper = np.array([0.965, 0.967, 0.975])
    return paper + shares * (ink - paper)


def _write_counts(axis: Any, report: ClassReport, font: float) -> None:
    shares = report.confusion / np.maximum(report.support, 1)[:, None]
    for (row, column), count in np.ndenumerate(report.confusion):
        if count:
            color = "white" if shares[row, column] > 0.3 else INK
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=font)


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def _short(name: str) -> str:
    plain = " ".join(name.split())
    return plain if len(plain) <= MAX_NAME_LENGTH else plain[: MAX_NAME_LENGTH - 1] + "…"
