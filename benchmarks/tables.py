"""Tables: shown on a terminal, or written as Markdown."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence

import rich.table
from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """How many of the first columns are words, which are aligned to the left."""
    notes: Sequence[str] = ()
    """Sentences below the table."""


def show_tables(tables: Iterable[Table]) -> None:
    """Prints tables; where the output is a file they are as wide as they need to be."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 220)
    for table in map(drop_empty_columns, tables):
        shown = rich.table.Table(title=table.title)
        for number, heading in enumerate(table.headings):
            shown.add_column(heading, justify="left" if number < table.words else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        for note in table.notes:
            console.print(note, markup=False)


def drop_empty_columns(table: Table) -> Table:
    """Drops columns in which no row has anything, such as those of a peer that took no part."""
    kept = [i for i in range(len(table.headings)) if any(row[i] for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return dataclasses.replace(table, headings=[table.headings[i] for i in kept], rows=rows)


def write_markdown(table: Table) -> str:
    """Writes a table as Markdown, its notes as a list below it."""
    table = drop_empty_columns(table)
    ruler = ["---" if number < table.words else "---:" for number in range(len(table.headings))]
    lines = [_line(table.headings), "|" + "|".join(ruler) + "|", *map(_line, table.rows)]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def format_short(x: float | None) -> str:
    """Formats a number with three digits and without an exponent."""
    if x is None:
        return ""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def format_span(row: Mapping[str, float]) -> str:
    """Formats the median and the range of milliseconds."""
    low, high = format_short(row["min_ms"]), format_short(row["max_ms"])
    return f"{format_short(row['median_ms'])} ({low}–{high})"


def format_ratio(x: float | None) -> str:
    """Formats how many times as fast something is."""
    if x is None:
        return ""
    return f"{x:.2f}" if x < 9.95 else f"{x:,.0f}"


def compare_with(rival: str, ratios: Mapping[str, float]) -> str:
    """Says in a sentence where a rival is faster.

    Args:
      rival: its name.
      ratios: how many times as fast as the rival jaxaccel is, by the name of the cell.
    """
    slower = {name: ratio for name, ratio in ratios.items() if ratio < 1}
    cells = f"{len(ratios)} cell{'' if len(ratios) == 1 else 's'}"
    best = max(ratios, key=ratios.__getitem__)
    most = f"jaxaccel is up to {format_ratio(ratios[best])} times as fast ({best})"
    if not slower:
        return f"{rival} is faster in none of {cells}; {most}."
    worst = min(slower, key=slower.__getitem__)
    lead = f"**{rival} is faster in {len(slower)} of {cells}**, at most {format_ratio(1 / slower[worst])}"
    return f"{lead} times ({worst})" + (f"; {most}." if len(slower) < len(ratios) else ".")
