"""Plots of speed-ups: a row for each site, a dot for each form."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.records import Cell

TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def scatter_speed_ups(
    file: Path, labels: Sequence[str], points: Mapping[str, Sequence[tuple[float, float]]], title: str, *,
    chosen: Sequence[tuple[float, float]] = (), width: float = 11, height: float = 0.2,
) -> None:  # fmt: skip
    """Draws dots of (speed-up, row) by the name of their kind, with rings around those that are chosen."""
    from matplotlib.figure import Figure

    if not labels:
        return
    figure = Figure(figsize=(width, 2 + height * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    for name, found in points.items():
        axes.scatter(*zip(*found, strict=True), s=26, label=name)
    if chosen:
        ring = {"facecolors": "none", "edgecolors": "black", "label": "chosen"}
        axes.scatter(*zip(*chosen, strict=True), s=95, **ring)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    shown = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(title)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def scatter_forms(file: Path, labels: Sequence[str], cells: Sequence[Cell], base: str, title: str) -> None:
    """Draws the speed-up of each form over `base`, and which is chosen; a row a cell."""
    points: dict[str, list[tuple[float, float]]] = {}
    chosen = []
    for row, cell in enumerate(cells):
        for form in cell["forms"]:
            if form["name"] != base:
                points.setdefault(form["name"], []).append((form["speed_up"], row))
            if form["name"] == cell["choice"]:
                chosen.append((form["speed_up"], row))
    scatter_speed_ups(file, labels, points, title, chosen=chosen)
