"""The picture of a pipeline: what each step pays in its metric for bytes and for time."""

import itertools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxaccel.compression.plot_labels import name_points
from jaxaccel.compression.receipts import Receipt
from jaxaccel.compression.report import gain_text, is_change, metric_text
from jaxaccel.tasks.metrics import Headline, score_text
from jaxaccel.training.plot import BLUE, INK, MUTED, ORANGE, clip_limits, tick_by_powers


def draw_pareto(path: Path, rows: Sequence[Receipt], headline: Headline) -> None:
    """Draws the metric over packed bytes and over latency: to the left is better, and so is up or down."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    gains = chain_ratios(rows)
    kilobytes, times = [row.packed_bytes / 1e3 for row in rows], [100 / gain for gain in gains]
    _panel(left, rows, kilobytes, headline, "packed file, kB")
    _panel(right, rows, times, headline, "time of one example, % of the origin's")
    scores = [row.scores[headline.name] for row in rows]
    if known := [score for score in scores if math.isfinite(score)]:
        left.set_ylim(score_limits(known))
    left.set_ylabel(metric_text(headline), color=MUTED, fontsize=9)
    figure.suptitle(
        describe_gains(rows, headline), color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left"
    )
    figure.text(
        0.99, 0.985, "filled: nothing is better in both", ha="right", va="top", fontsize=8, color=MUTED
    )
    figure.draw_without_rendering()  # names are placed where the layout is final
    for axis, x in ((left, kilobytes), (right, times)):
        drawn = [(a, b, row.step) for a, b, row in zip(x, scores, rows, strict=True) if math.isfinite(b)]
        name_points(axis, [(a, b) for a, b, _ in drawn], [name for *_, name in drawn], INK, MUTED)
    figure.savefig(path)


def describe_gains(rows: Sequence[Receipt], headline: Headline) -> str:
    """What the whole pipeline came to."""
    first, last, gain = rows[0], rows[-1], chain_ratios(rows)[-1]
    noise = estimate_chain_noise(rows)
    speed = gain_text(gain, noise) if is_change(gain, noise) else f"speed {gain_text(gain, noise)}"
    begin, end = (score_text(row.scores[headline.name]) for row in (first, last))
    return f"{first.packed_bytes / last.packed_bytes:.1f}x smaller, {speed}, {headline.name} {begin} to {end}"


def chain_ratios(rows: Sequence[Receipt]) -> list[float]:
    """How many times as fast as the first each one is: the product of the ratios to the step before.

    Each ratio was measured in turns, so that a machine that was busier for one step than for another does not count.
    """
    return list(itertools.accumulate((row.latency_gain or 1.0 for row in rows), operator.mul))


def estimate_chain_noise(rows: Sequence[Receipt]) -> float:
    """How far the last of `chain_ratios` may be off, the errors of its factors being independent of each other."""
    parts = [(row.latency_noise or 0.0) / (row.latency_gain or 1.0) for row in rows]
    return chain_ratios(rows)[-1] * math.hypot(*parts)


def score_limits(scores: Sequence[float]) -> tuple[float, float]:
    """The ends of the metric's axis: room for names, no magnified nothing, and no share above 1."""
    low, high = min(scores), max(scores)
    reach = max(high - low, 0.02 if 0 <= low <= high <= 1 else 0.02 * max(abs(low), abs(high)), 1e-9)
    middle = (low + high) / 2
    return clip_limits(middle - 0.8 * reach, middle + 0.8 * reach, scores)


def _panel(axis: Any, rows: Sequence[Receipt], x: list[float], headline: Headline, label: str) -> None:
    y, ranks = [row.scores[headline.name] for row in rows], [headline.rank(row.scores) for row in rows]
    axis.plot(x, y, color=MUTED, lw=0.8, zorder=1)
    for row, a, b, rank in zip(rows, x, y, ranks, strict=True):
        beaten = any(c <= a and r >= rank and (c, r) != (a, rank) for c, r in zip(x, ranks, strict=True))
        color = ORANGE if row is rows[-1] else BLUE
        face = "white" if beaten else color
        axis.scatter(a, b, s=48, color=face, edgecolors=color, zorder=2, clip_on=False)
    if max(x) > 3 * min(x):
        axis.set_xscale("log")
        tick_by_powers(axis.xaxis, x)
    else:  # a change of a few percent is not to fill the picture
        middle, reach = (min(x) + max(x)) / 2, max(0.7 * (max(x) - min(x)), 0.05 * max(x))
        axis.set_xlim(middle - reach, middle + reach)
    axis.set_xlabel(label, color=MUTED, fontsize=9)
    axis.margins(x=0.2)
    axis.grid(True, axis="y", color="#e6e8ee", lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", colors=MUTED, labelsize=8)
