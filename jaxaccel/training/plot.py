"""The picture of a run: its loss, its metrics, learning rate and throughput over the epochs."""

import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxaccel.tasks.metrics import RESERVED, Headline, score_text
from jaxaccel.training import run_log

INK, MUTED = "#1f2430", "#8a90a0"
BLUE, ORANGE = "#2f6fde", "#d9711c"
PANELS = 6
"""Metrics that are drawn at most, the loss among them; metrics.jsonl has all."""
LETTERS = 92
"""Of the title in one line, which is as wide as the picture then."""
Rows = Sequence[Mapping[str, Any]]


def draw(directory: Path, title: str, headline: Headline) -> Path:
    """Draws ``curves.png`` from the run's metrics.jsonl and returns its path.

    Args:
      directory: of the run.
      title: above the picture.
      headline: the metric that comes next to the loss, where the best evaluation is marked.
    """
    from matplotlib.figure import Figure

    rows = run_log.read(directory)
    train = [row for row in rows if row["kind"] == "train"]
    evaluation = [row for row in rows if row["kind"] == "eval"]
    shown = choose_panels(train, evaluation, headline)
    lines = math.ceil((len(shown) + 2) / 2)
    figure = Figure(figsize=(10, 3.2 * lines), layout="constrained", dpi=120)
    figure.suptitle(wrap_title(title), color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(lines, 2, sharex=True).ravel()
    for axis, name in zip(axes, shown, strict=False):
        _draw_metric(axis, name, train, evaluation, headline)
    rate, speed, *empty = axes[len(shown) :]
    _draw_line(rate, "learning rate", *_points(train, "learning_rate"))
    epochs, values = _points(train, "examples_per_second")
    _draw_training(speed, "throughput, examples/s", epochs, values)
    speed.set_ylim(0, 1.5 * max(_smooth(values), default=1))
    speed.yaxis.set_major_formatter("{x:,.0f}")
    for axis in (rate, speed):
        axis.set_xlabel("epoch", color=MUTED, fontsize=9)
    for axis in empty:
        axis.set_visible(False)
    pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    kinds = {label: handle for handle, label in pairs}
    if kinds:
        axes[0].legend(kinds.values(), kinds, frameon=False, fontsize=9)
    figure.savefig(directory / "curves.png")
    return directory / "curves.png"


def wrap_title(title: str) -> str:
    """The title in lines of at most `LETTERS`, no metric parted from its value: two spaces are between metrics."""
    return textwrap.fill(re.sub(r"(?<! ) (?! )", "\N{NO-BREAK SPACE}", title), LETTERS)


def choose_panels(train: Rows, evaluation: Rows, headline: Headline) -> list[str]:
    """The metrics to draw: the loss, the headline, and others that were evaluated or, before that, trained by."""
    known = {name for row in (*train, *evaluation) for name, value in row.items() if value is not None}
    names = dict.fromkeys(["loss", headline.name, *(name for row in evaluation or train for name in row)])
    replicas = {name for name in names if name.rpartition("/")[0] in names}
    beside = {f"{headline.name}_std", f"{headline.name}_best", *RESERVED, *replicas}
    return [name for name in names if name in known - beside][:PANELS]


def axis_limits(
    evaluated: Sequence[float], trained: Sequence[float], headline: Headline
) -> tuple[float, float] | None:
    """The lower and the upper end of a metric's axis; None where nothing was evaluated.

    Its worse end leaves out the first steps, which are not what one looks for. The axis ends at 1 where all numbers are
    shares, and at 0 where none is below it.

    Args:
      evaluated: what the evaluations found, which lies within.
      trained: what training found; what is better than all evaluations lies within, too.
      headline: says which end is the better one.
    """
    found = [value for value in evaluated if math.isfinite(value)]
    everything = [value for value in (*found, *trained) if math.isfinite(value)]
    if not found:
        return None
    sign = 1 if headline.better == "higher" else -1
    best, worst = sign * max(sign * x for x in everything), sign * min(sign * x for x in found)
    reach = max(abs(best - worst), 0.02 * max(abs(best), abs(worst)), 1e-9)
    low, high = sorted((worst - sign * reach / 2, best + sign * reach / 10))
    return clip_limits(low, high, everything)


def clip_limits(low: float, high: float, values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, drawn in to 0 and 1 where none of `values` lies beyond: shares end at 1."""
    if min(values) < 0:
        return low, high
    return max(low, 0.0), min(high, 1.0) if max(values) <= 1 else high


def _draw_metric(axis: Any, name: str, train: Rows, evaluation: Rows, headline: Headline) -> None:
    epochs, trained = _points(train, name)
    lower = name == headline.name != "loss" and headline.better == "lower"
    _draw_training(axis, f"{name}, lower is better" if lower else name, epochs, trained)
    at, found = _points(evaluation, name)
    replicas = {key for row in evaluation for key in row if key.startswith(f"{name}/")}
    for replica in replicas:
        axis.plot(*_points(evaluation, replica), color=ORANGE, lw=0.8, alpha=0.35)
    if found:
        axis.plot(at, found, color=ORANGE, lw=1.6, marker="o", ms=3, label="evaluation")
    numbers = [value for value in (*trained, *found) if math.isfinite(value)]
    if name == "loss" and numbers and 0 < 2 * min(numbers) < max(numbers):
        axis.set_yscale("log")
        tick_by_powers(axis.yaxis, numbers)
    elif name in ("loss", headline.name):
        each = [value for replica in replicas for value in _points(evaluation, replica)[1]]
        direction = headline if name == headline.name else Headline(name, "lower")
        axis.set_ylim(axis_limits([*found, *each], _smooth(trained), direction))
    elif numbers:
        bottom, top = axis.get_ylim()
        axis.set_ylim(clip_limits(bottom, top, numbers))
    if name == headline.name and found:
        _mark_best(axis, at, found, headline)


def _mark_best(axis: Any, epochs: list[float], found: list[float], headline: Headline) -> None:
    best = headline.best([{headline.name: value} for value in found])
    if not math.isfinite(found[best]):
        return
    right = epochs[best] > (epochs[0] + epochs[-1]) / 2 or len(epochs) == 1
    axis.annotate(
        f"best {score_text(found[best])}", (epochs[best], found[best]),
        xytext=(-8 if right else 8, -26 if headline.better == "higher" else 26),
        textcoords="offset points", ha="right" if right else "left", va="center", color=ORANGE, fontsize=9,
        arrowprops={"arrowstyle": "-", "color": ORANGE, "lw": 0.8},
    )  # fmt: skip


def tick_by_powers(axis: Any, values: Sequence[float]) -> None:
    """Ticks for `values` on a logarithmic axis: at powers of 10, and between them where those are few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    decades = math.log10(max(values) / min(values))
    between = range(1, 10) if decades < 0.7 else (1, 2, 5) if decades < 2.5 else (1,)
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_training(axis: Any, title: str, epochs: list[float], values: list[float]) -> None:
    if values:
        axis.plot(epochs, values, color=BLUE, lw=0.8, alpha=0.25)
    smooth = {"label": "training, running median"} if values else {}
    _draw_line(axis, title, epochs, _smooth(values), **smooth)


def _draw_line(axis: Any, title: str, epochs: list[float], values: list[float], **options: Any) -> None:
    axis.plot(epochs, values, color=BLUE, lw=1.4, **options)
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.grid(True, axis="y", color="#e6e8ee", lw=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(MUTED)
    axis.tick_params(which="both", colors=MUTED, labelsize=8, length=0, labelbottom=True)


def _points(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have that metric; JSON has null for what is not finite."""
    there = [(row["epoch"], row[name]) for row in rows if name in row]
    return [epoch for epoch, _ in there], [math.nan if value is None else value for _, value in there]


def _smooth(values: Sequence[float], reach: int = 7) -> list[float]:
    """The median of each value and its neighbors, those that are not finite left out."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    known = ([value for value in window if math.isfinite(value)] for window in windows)
    return [statistics.median(window) if window else math.nan for window in known]
