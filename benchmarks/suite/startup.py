"""Times the way from typing a command to its first trained steps, with and without compiling.

    python -m benchmarks startup
    python -m benchmarks startup --recipe digits --flags --batch-size 32

cold: the compile cache is empty. warm: the same command once more. All are fresh processes; the data set is prepared
beforehand. The clock stops when the first row stands in metrics.jsonl, as somebody who looks on would see it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import Benchmark
from benchmarks.options import Mistake, Option, Options, read_count
from benchmarks.records import Cell
from benchmarks.tables import Table

PAUSE = 0.005
"""Seconds between two looks at the file."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields the one cell: cold and warm starts in turns."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # Prepares the data, and brings the packages' files into the page cache, for all alike.
        start_run(options.recipe, place, place / "discarded", options.flags)
        for number in range(options.rounds):
            for rows in found.values():
                rows.append(start_run(options.recipe, place, place / f"cache-{number}", options.flags))
    medians = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for side, rows in found.items()
    }
    yield {"recipe": options.recipe, "flags": list(options.flags), "medians": medians, "all": found}


def start_run(recipe: str, place: Path, cache: Path, flags: Sequence[str] = ()) -> dict[str, float]:
    """Runs a single epoch in a fresh process.

    Args:
      recipe: its name.
      place: holds the prepared data; the run is written there, too.
      cache: directory of the compile cache.
      flags: further ones of the command.

    Returns:
      Seconds: ``first_steps`` and ``total`` on the clock, ``compile`` as result.json has it.
    """
    run = place / "run"
    command = [
        sys.executable,
        "-m",
        "jaxaccel.train",
        recipe,
        "--epochs",
        "1",
        "--run",
        str(run),
        "--overwrite",
    ]
    environment = os.environ | {"JAXACCEL_CACHE": str(cache), "TFDS_DATA_DIR": str(place / "data")}
    (run / "metrics.jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, *flags], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        first = None
        while process.poll() is None:
            if first is None and has_rows(run / "metrics.jsonl"):
                first = time.perf_counter() - begin
            time.sleep(PAUSE)
        total = time.perf_counter() - begin
        if process.returncode or first is None:
            output.seek(0)
            said = output.read().strip().splitlines() or ["nothing"]
            raise Mistake(f"{' '.join(command[1:])} failed: {said[-1]}")
    compiling = json.loads((run / "result.json").read_text())["compile_seconds"]
    return {"first_steps": first, "compile": compiling, "total": total}


def has_rows(file: Path) -> bool:
    """Tells whether a file is there and not empty."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a kind of start."""
    headings = ["recipe", "start", "first steps s (min–max)", "of it compiling s", "one epoch, all s"]
    rows = []
    for cell in cells:
        for side, median in cell["medians"].items():
            times = [row["first_steps"] for row in cell["all"][side]]
            span = f"{median['first_steps']:.1f} ({min(times):.1f}–{max(times):.1f})"
            rows.append([cell["recipe"], side, span, f"{median['compile']:.1f}", f"{median['total']:.1f}"])
    return [Table("Seconds to the first steps", headings, rows, words=2)]


BENCHMARK = Benchmark(
    measure, tabulate, ("recipe", "flags"), part="recipe",
    options=(
        Option("recipe", "The recipe.", "digits", metavar="NAME"),
        Option("rounds", "Cold and warm starts.", 3, 1, read_count, metavar="N"),
        Option("flags", "All that follows is for the recipe.", (), metavar="FLAG", rest=True),
    ),
)  # fmt: skip
