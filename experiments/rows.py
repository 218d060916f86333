"""What the experiments share: trained recipes as rows of a JSON file that grows, and bars to look at."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxaccel as ja
from jaxaccel.core import runtime
from jaxaccel.training import run_log


def trained(recipe: ja.Recipe) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A recipe's summary and its evaluations, from a run that leaves nothing behind."""
    with folder() as place:
        result = ja.train(recipe, run=place / "run")
        rows = [row for row in run_log.read(place / "run") if row["kind"] == "eval"]
    return result.summary, rows


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A directory that is gone afterward."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def known(out: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that an earlier run with the same options left in `out`."""
    if out is None or not out.exists():
        return {}
    record = json.loads(out.read_text(encoding="utf-8"))
    if record["options"] != dict(options):
        raise ja.UserError(
            f"{out} was made with {record['options']}: choose another --out, or the same options"
        )
    return record["rows"]


def write(out: Path | None, options: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """All rows so far, with what they were made with."""
    if out is not None:
        record = {"versions": runtime.versions(), "options": dict(options), "rows": dict(rows)}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def bars(
    path: Path, title: str, label: str, rows: Sequence[tuple[str, float, float]], mark: float | None = None
) -> None:
    """Horizontal bars with their deviation, the best on top.

    With a `mark`, more is better and bars are compared around a line there; without, less is, and they start at 0.
    """
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: row[1], reverse=mark is None)
    figure = Figure(figsize=(8, 0.34 * len(rows) + 1.2), layout="constrained", dpi=120)
    axis = figure.subplots()
    names, means, deviations = zip(*rows, strict=True)
    axis.barh(
        names, means, xerr=deviations, color="#2f6fde", height=0.62, error_kw={"ecolor": "#1f2430", "lw": 1}
    )
    if mark is not None:
        axis.axvline(mark, color="#d9711c", lw=1.2)
        ends = [value for _, mean, deviation in rows for value in (mean - deviation, mean + deviation)] + [
            mark
        ]
        room = 0.08 * (max(ends) - min(ends) or 1)
        axis.set_xlim(min(ends) - room, max(ends) + room)
    axis.set_xlabel(label)
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path)
