"""What an evaluation found, as tables for a terminal: each class, what is confused most, and the surest mistakes."""

from collections.abc import Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.training.plot_mistakes import Mistake

MAX_LETTERS = 120
"""Of a text that are shown on the terminal."""
MAX_ROWS = 20
"""Classes up to which the table on the terminal has all of them."""


def class_tables(report: ClassReport) -> list[Table]:
    """What each class comes to, the worst ones where there are many, and what is confused most, for a terminal."""
    rows = report.rows()
    some = sorted(rows, key=lambda row: np.nan_to_num(row["f1"], nan=2.0))[:MAX_ROWS]
    many = len(rows) > MAX_ROWS
    shown = Table(
        title=f"the {len(some)} of {len(rows)} classes with the lowest F1" if many else None,
        title_justify="left",
    )
    shown.add_column("class")
    for name in ("precision, %", "recall, %", "F1, %", "examples", "predicted"):
        shown.add_column(name, justify="right")
    for row in some if many else rows:
        shares = (_percent(row[name]) for name in ("precision", "recall", "f1"))
        shown.add_row(escape(row["name"]), *shares, f"{row['support']:,}", f"{row['predictions']:,}")
    shown.add_section()
    means = report.means()
    total = f"{int(report.support.sum()):,}"
    shown.add_row("mean", *(_percent(means[name]) for name in ("precision", "recall", "f1")), total, total)
    pairs = report.confused(5)
    if not pairs:
        return [shown]
    confused = Table(title="confused most", title_justify="left")
    for name, justify in (("true", "left"), ("predicted", "left"), ("examples", "right")):
        confused.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for true, predicted, count in pairs:
        confused.add_row(escape(true), escape(predicted), f"{count:,}")
    return [shown, confused]


def mistakes_table(listed: Sequence[Mistake]) -> Table:
    """The surest mistakes on texts, for a terminal."""
    shown = Table(title="the surest mistakes", title_justify="left")
    for name in ("true", "predicted", "sure, %", "text"):
        shown.add_column(name, justify="right" if "%" in name else "left")
    for mistake in listed[:MAX_ROWS]:
        text = mistake.text if len(mistake.text) <= MAX_LETTERS else f"{mistake.text[:MAX_LETTERS]}..."
        shown.add_row(
            escape(mistake.true), escape(mistake.predicted), _percent(mistake.probability), escape(text)
        )
    return shown


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.2f}"
