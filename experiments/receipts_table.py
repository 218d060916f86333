"""Pipelines followed to their end, and a table of all their receipts."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel.compression import Pipeline, Step
from jaxaccel.core import runtime

Show = Mapping[str, Callable[[Mapping[str, Any]], str]]
"""Columns of the table: of a receipt, by heading."""


def follow_pipeline(
    name: str, steps: dict[str, Step], origin: Path, training: ja.Recipe | None, directory: Path
) -> list[dict[str, Any]]:
    """The receipts of one pipeline, which goes on where it was stopped."""
    place = find_place(directory, name)
    resume = (place / "pipeline.json").exists()
    done = ja.compress(Pipeline(steps), origin, training, run=place, resume=resume)
    return [dataclasses.asdict(row) for row in done.receipts]


def find_place(directory: Path, name: str) -> Path:
    """Where the pipeline of that name lies."""
    return directory / "".join("_" if letter in " '" else letter for letter in name if letter not in "%:")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A pipeline of an experiment."""

    of: str
    """What the model is called in the table."""
    origin: Path
    """Run that is compressed."""
    steps: dict[str, Step]


def follow_plans(
    plans: Mapping[str, Plan],
    only: Sequence[str],
    directory: Path,
    out: Path | None,
    tell: Callable[[str, Mapping[str, Any]], None] = lambda name, row: None,
    **options: Any,
) -> dict[str, Any]:
    """Follows pipelines, and writes their receipts to `out` after each one.

    Args:
      plans: by name.
      only: names of those that are wanted; all where there are none.
      directory: of all pipelines.
      out: a file, which may hold other pipelines of an earlier call.
      tell: called with the name and the row of each pipeline that was followed.
      options: what else to write of each.

    Returns:
      The rows of `print_table`, those of earlier calls among them.
    """
    check_names(only, list(plans))
    rows = read_rows(out)
    for name, plan in plans.items():
        if only and name not in only:
            continue
        receipts = follow_pipeline(name, plan.steps, plan.origin, None, directory)
        rows[name] = {"of": plan.of, **options, "receipts": receipts}
        tell(name, rows[name])
        write_rows(out, rows)
    return rows


def check_names(only: Sequence[str], names: Sequence[str]) -> None:
    """Checks that each of `only` is one of `names`."""
    if unknown := set(only) - set(names):
        raise ja.UserError(f"no pipeline {min(unknown)!r}: {', '.join(names)}")


def read_rows(out: Path | None) -> dict[str, Any]:
    """The pipelines that an earlier call left in `out`, by name."""
    return json.loads(out.read_text())["rows"] if out and out.exists() else {}


def write_rows(out: Path | None, rows: Mapping[str, Any]) -> None:
    """All pipelines so far, with the device and the versions."""
    if out:
        record = {"versions": runtime.versions(), "device": jax.devices()[0].device_kind, "rows": rows}
        out.write_text(json.dumps(record, indent=1) + "\n")


def print_table(rows: Mapping[str, Any], title: str, scores: Show) -> None:
    """Every step of every pipeline; ratios are to the model that the pipeline began with.

    Args:
      rows: ``{"of": the model, "receipts": [...]}`` by the pipeline's name.
      title: above the table.
      scores: columns of a receipt's scores.
    """
    table = Table(title=title, title_justify="left")
    numbers = ("MFLOPs", "not 0", "packed kB", "times smaller", "ms, one", "ms, a batch")
    for heading in ("pipeline", "step", *scores, *numbers):
        left = heading in ("pipeline", "step")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for name, found in rows.items():
        first, last = found["receipts"][0], found["receipts"][-1]
        for row in found["receipts"]:
            table.add_row(
                f"{found['of']}: {name}" if row is first else "", row["step"],
                *(text(row["scores"]) for text in scores.values()),
                f"{row['flops'] / 1e6:.1f}", f"{row['nonzeros']:,}", f"{row['packed_bytes'] / 1e3:,.0f}",
                f"{first['packed_bytes'] / row['packed_bytes']:.1f}", f"{row['latency_ms']:.2f}",
                f"{1000 * row['batch'] / row['throughput']:.0f}", end_section=row is last,
            )  # fmt: skip
    Console(width=140).print(table)
