"""A model of jaxaccel beside PyTorch's in one run: a check that both compute the same, times in turns, and tables."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.options import Mistake, Options
from benchmarks.peers.process import Process
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_span
from benchmarks.task_programs import Batch, TaskModel
from jaxaccel.core.timing import Turn, run_repeatedly, time_in_turns

RIVALS = {"xla": "XLA's forms", "eager": "PyTorch", "compiled": "torch.compile"}
WHAT = ("train", "infer")
AGREES = 1e-4
"""Largest difference of what both compute, such as losses and norms of gradients, relative to the largest number."""
Turns = Mapping[tuple[str, str, str], Turn]
"""Turns by (way, what, batches)."""


class Checked(Protocol):
    """What the other process computes as well."""

    def save(self, file: Path) -> None:
        """Saves weights, and what else is shared."""
        ...

    def check(self) -> Mapping[str, Any]:
        """Computes numbers that must be the same over there, by name."""
        ...


def choose_ways(options: Options) -> tuple[str, ...]:
    """Chooses the ways in which jaxaccel runs: with `ja.retarget`, and without it unless that is to be quick."""
    return ("jaxaccel",) if options.quick else ("jaxaccel", "xla")


def make_turns(
    ours: TaskModel, epochs: Mapping[str, Sequence[Batch]], what: Sequence[str], ways: Sequence[str]
) -> dict[tuple[str, str, str], Turn]:
    """Makes the turns of jaxaccel."""
    make: Mapping[str, Callable[..., Callable[[], Any]]] = {
        "train": ours.make_training,
        "infer": ours.make_inference,
    }
    return {
        (way, kind, name): run_repeatedly(make[kind](epoch, way == "jaxaccel"))
        for kind in what
        for name, epoch in epochs.items()
        for way in ways
    }


def open_session(
    ours: Checked,
    sizes: Any,
    torch: Process | None,
    options: Options,
    agrees: Mapping[str, float] | None = None,
    **what: Any,
) -> dict[str, Any]:
    """Gives the other process the weights, and checks that both compute the same.

    Args:
      ours: what jaxaccel computes.
      sizes: of the model.
      torch: the other process; None where there is none.
      options: of the benchmark.
      agrees: by the names of what is compared, where it may differ by another number than `AGREES`.
      what: the other process is told besides.
    """
    if torch is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"
        ours.save(file)
        made = torch.ask(sizes=dataclasses.asdict(sizes), arrays=str(file), compile=options.compile, **what)
    for name, value in ours.check().items():
        most = (agrees or {}).get(name, AGREES)
        check_equal(f"{sizes.model}'s {name}", np.asarray(made[name]), np.asarray(value), most)
    return made


def check_equal(name: str, theirs: np.ndarray, ours: np.ndarray, most: float = AGREES) -> None:
    """Checks that numbers differ by no more than `most` of the largest.

    Raises:
      Mistake: they do.
    """
    error = np.abs(theirs - ours).max()
    if not error <= most * np.abs(ours).max():
        shown = f" ({theirs:.7g} and {ours:.7g})" if ours.ndim == 0 else ""
        raise Mistake(f"{name}: PyTorch and jaxaccel differ by {error:.2g}{shown}")


def time_ways(
    what: str, batches: str, turns: Turns, theirs: Mapping[str, Any], torch: Process | None, options: Options
) -> Cell:
    """Times all ways to do one thing with these batches."""
    contenders = {way: turn for (way, kind, _), turn in turns.items() if kind == what}
    for way in theirs.get("ways", ()):
        assert torch
        contenders[way] = torch.turn(f"{way}, {what}, {batches}")
    times = time_in_turns(contenders, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = {way: summarize_times(found) for way, found in times.rounds.items()}
    ratios = {way: times.gain("jaxaccel", way).ratio for way in rows if way != "jaxaccel"}
    return {"times": rows, "times_as_fast_as": ratios, "rounds": len(times.rounds["jaxaccel"])}


def tabulate_steps(cells: Sequence[Cell], tables: Mapping[str, tuple[str, str]]) -> list[Table]:
    """Makes a table of training steps and one of inference for each of `tables` that has cells.

    Args:
      cells: with their table's name as ``table``.
      tables: the column that tells cells apart, and what stands behind the title, by the name of a table.
    """
    found = []
    for table, (column, title) in tables.items():
        some = [cell for cell in cells if cell["table"] == table]
        for what, name in zip(
            WHAT, ("Milliseconds of a training step", "Milliseconds of inference"), strict=True
        ):
            if some:
                found.append(tabulate_times(f"{name}, {title}", column, what, some))
    return found


def tabulate_times(title: str, column: str, what: str, cells: Sequence[Cell]) -> Table:
    """Makes one line a cell; a ratio above 1 says that jaxaccel is that many times as fast.

    Args:
      title: of the table.
      column: value that tells cells of a model apart.
      what: which of a cell's programs.
      cells: with at least the program of jaxaccel.
    """
    headings = ["model", column, "batch", "jaxaccel ms", *(f"{name} ms" for name in RIVALS.values()),
                *(f"× {name}" for name in RIVALS.values())]  # fmt: skip
    rows, compared = [], {way: {} for way in RIVALS}
    for cell in cells:
        found = cell["programs"][what]
        times, ratios = found["times"], found["times_as_fast_as"]
        shown = [format_span(times[way]) if way in times else "" for way in ("jaxaccel", *RIVALS)]
        rows.append([cell["model"], str(cell[column]), str(cell["batch_size"]), *shown,
                     *(format_ratio(ratios.get(way)) for way in RIVALS)])  # fmt: skip
        for way in RIVALS:
            if way in ratios:
                compared[way][f"{cell['model']}, {column} {cell[column]}"] = ratios[way]
    notes = [compare_with(RIVALS[way], found) for way, found in compared.items() if found]
    return Table(title, headings, rows, notes=notes)
