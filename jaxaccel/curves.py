"""The picture of a run: loss, accuracy, learning rate and throughput over the epochs."""

import statistics
from pathlib import Path
from typing import Any

from jaxaccel import runlog

INK, MUTED = "#1f2430", "#8a90a0"
BLUE, ORANGE = "#2f6fde", "#d9711c"


def draw(directory: Path, title: str) -> Path:
    """Draws ``curves.png`` from the run's metrics.jsonl and returns its path."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    rows = runlog.read(directory)
    train = [row for row in rows if row["kind"] == "train"]
    evaluation = [row for row in rows if row["kind"] == "eval"]
    figure = Figure(figsize=(10, 6.4), layout="constrained", dpi=120)
    figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(2, 2).ravel()
    metric = next(
        (name for name in (evaluation[-1] if evaluation else {}) if name not in _NOT_SHOWN), "accuracy"
    )
    _panel(axes[0], "loss", train, evaluation, "loss")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(LogFormatter())
    axes[0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    _panel(axes[1], metric, train, evaluation, metric)
    if evaluation:
        worst = min(row[metric] for row in evaluation)
        axes[1].set_ylim(
            bottom=max(0.0, worst - (1 - worst) / 2)
        )  # the first steps are not what one looks for
        best = max(evaluation, key=lambda row: row[metric])
        axes[1].annotate(
            f"best {best[metric]:.4f}", (best["epoch"], best[metric]), xytext=(0, -26),
            textcoords="offset points", ha="right", color=ORANGE, fontsize=9,
            arrowprops={"arrowstyle": "-", "color": ORANGE, "lw": 0.8},
        )  # fmt: skip
    _panel(axes[2], "learning rate", train, [], "learning_rate")
    _panel(axes[3], "throughput, examples/s", train, [], "examples_per_second")
    rates = [row["examples_per_second"] for row in train]
    axes[3].set_ylim(0, 1.5 * max(_smooth(rates), default=1))
    axes[3].yaxis.set_major_formatter("{x:,.0f}")
    for axis in axes[2:]:
        axis.set_xlabel("epoch", color=MUTED, fontsize=9)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(directory / "curves.png")
    return directory / "curves.png"


def _smooth(values: list[float], reach: int = 7) -> list[float]:
    """The median of each value and its neighbours."""
    return [statistics.median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


_NOT_SHOWN = ("kind", "step", "epoch", "loss")


def _panel(axis: Any, title: str, train: list[dict], evaluation: list[dict], name: str) -> None:
    rows = [row for row in train if row.get(name) is not None]
    x, y = [row["epoch"] for row in rows], [row[name] for row in rows]
    if name == "learning_rate":
        axis.plot(x, y, color=BLUE, lw=1.4)
    else:
        axis.plot(x, y, color=BLUE, lw=0.8, alpha=0.25)
        axis.plot(x, _smooth(y), color=BLUE, lw=1.4, label="training, running median")
    if evaluation:
        x, y = [row["epoch"] for row in evaluation], [row[name] for row in evaluation]
        for replica in (key for key in evaluation[-1] if key.startswith(f"{name}/")):
            axis.plot(x, [row.get(replica) for row in evaluation], color=ORANGE, lw=0.8, alpha=0.35)
        axis.plot(x, y, color=ORANGE, lw=1.6, marker="o", ms=3, label="evaluation")
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.grid(True, axis="y", color="#e6e8ee", lw=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(MUTED)
    axis.tick_params(which="both", colors=MUTED, labelsize=8, length=0)
