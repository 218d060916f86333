"""The picture of a route: what each step pays in accuracy for bytes and for time."""

import itertools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxaccel.curves import BLUE, INK, MUTED, ORANGE
from jaxaccel.route.receipts import Receipt
from jaxaccel.route.wording import gain_text


def pareto(path: Path, rows: Sequence[Receipt], metric: str) -> None:
    """Draws accuracy over packed bytes and over latency; up and to the left is better."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    first, last, gains = rows[0], rows[-1], chained(rows)
    scores = [row.scores[metric] for row in rows]
    _panel(left, rows, [row.packed_bytes / 1e3 for row in rows], scores, "packed file, kB")
    _panel(right, rows, [100 / gain for gain in gains], scores, "time of one example, % of the origin's")
    left.set_ylabel(metric, color=MUTED, fontsize=9)
    right.annotate(
        "filled: nothing is better in both",
        (1, 0.01),
        xycoords="axes fraction",
        ha="right",
        fontsize=8,
        color=MUTED,
    )
    smaller = f"{first.packed_bytes / last.packed_bytes:.1f}x smaller, {gain_text(gains[-1])}"
    title = f"{smaller}, {metric} {scores[0]:.4f} to {scores[-1]:.4f}"
    figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path)


def chained(rows: Sequence[Receipt]) -> list[float]:
    """How many times as fast as the first each one is: the product of the ratios to the step before.

    Each ratio was measured in turns, so that a machine that was busier for one step than for another does not count.
    """
    return list(itertools.accumulate((row.latency_gain or 1.0 for row in rows), operator.mul))


def _panel(axis: Any, rows: Sequence[Receipt], x: list[float], y: list[float], label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.plot(x, y, color=MUTED, lw=0.8, zorder=1)
    for i, (row, a, b) in enumerate(zip(rows, x, y, strict=True)):
        beaten = any(c <= a and d >= b and (c, d) != (a, b) for c, d in zip(x, y, strict=True))
        color = ORANGE if row is rows[-1] else BLUE
        axis.scatter(a, b, s=48, color="white" if beaten else color, edgecolors=color, zorder=2)
        # Neighbours are often close: their names stand above and below by turns.
        axis.annotate(
            row.step,
            (a, b),
            xytext=(6, 6 if i % 2 else -13),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    if max(x) > 3 * min(x):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(label, color=MUTED, fontsize=9)
    axis.margins(x=0.2, y=0.15)
    axis.grid(True, axis="y", color="#e6e8ee", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", colors=MUTED, labelsize=8)
