"""The picture of a route: what each step pays in accuracy for bytes and for time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxaccel.curves import BLUE, INK, MUTED, ORANGE
from jaxaccel.route.receipts import Receipt
from jaxaccel.route.wording import gain_text


def pareto(path: Path, rows: Sequence[Receipt], metric: str) -> None:
    """Draws accuracy over packed bytes and over latency; up and to the left is better. Steps that nothing beats in both
    are filled.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    scores = [row.scores[metric] for row in rows]
    _panel(left, rows, [row.packed_bytes / 1e3 for row in rows], scores, "packed file, kB")
    _panel(right, rows, [row.latency_ms for row in rows], scores, "one example, ms")
    left.set_ylabel(metric, color=MUTED, fontsize=9)
    first, last = rows[0], rows[-1]
    smaller, gain = first.packed_bytes / last.packed_bytes, gain_text(first.latency_ms / last.latency_ms)
    title = f"{smaller:.1f}x smaller, {gain}, {metric} {scores[0]:.4f} to {scores[-1]:.4f}"
    figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path)


def _panel(axis: Any, rows: Sequence[Receipt], x: list[float], y: list[float], label: str) -> None:
    axis.plot(x, y, color=MUTED, lw=0.8, zorder=1)
    for row, a, b in zip(rows, x, y, strict=True):
        beaten = any(c <= a and d >= b and (c, d) != (a, b) for c, d in zip(x, y, strict=True))
        face = "white" if beaten else (ORANGE if row is rows[-1] else BLUE)
        axis.scatter(a, b, s=48, color=face, edgecolors=ORANGE if row is rows[-1] else BLUE, zorder=2)
        axis.annotate(row.step, (a, b), xytext=(6, 5), textcoords="offset points", fontsize=8, color=INK)
    axis.set_xscale("log")
    axis.set_xlabel(label, color=MUTED, fontsize=9)
    axis.margins(x=0.2, y=0.15)
    axis.grid(True, axis="y", color="#e6e8ee", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", colors=MUTED, labelsize=8)
