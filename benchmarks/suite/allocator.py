"""Measures what glibc's allocator costs a training step, as it ships and told to keep freed memory.

    python -m benchmarks allocator                                    # a small ConvNet on MNIST, batches of 128

Each measurement is a fresh process, for the setting cannot be taken back. CPU time and page faults say why, and are
steadier than the clock where others use the machine; peak RSS is the price.
"""

import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, read_count, read_number
from benchmarks.peers.process import run_module
from benchmarks.records import Cell
from benchmarks.tables import Table, format_ratio
from benchmarks.workloads import WORKLOADS
from jaxaccel.core.timing import compute_gain

SETTINGS = {
    "as shipped": {"JAXACCEL_ALLOCATOR": "0"},
    "keeps freed memory, many arenas": {"JAXACCEL_ALLOCATOR": "1", "MALLOC_ARENA_MAX": "16"},
    "keeps freed memory": {"JAXACCEL_ALLOCATOR": "1"},
}
"""Environment of each side. Arenas: threads other than the first allocate from heaps of 64 MB at most."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields the one cell: all measurements of each side, taken in turns."""
    words = [options.workload, str(options.batch), str(options.seconds)]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SETTINGS}
    for _ in range(options.rounds):
        for side, environment in SETTINGS.items():
            answer = run_module(sys.executable, "allocated_step", words, os.environ | environment)
            found[side].append(answer)
    medians = {
        side: {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "allocator"}
        for side, rows in found.items()
    }
    times = {side: [row["ms"] for row in rows] for side, rows in found.items()}
    ratios = {side: compute_gain(own, times["as shipped"]).ratio for side, own in times.items()}
    cell = {"workload": options.workload, "batch_size": options.batch}
    yield cell | {"medians": medians, "times_as_fast": ratios, "all": found}


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a side."""
    headings = ["workload", "allocator", "batch", "ms a step (min–max)", "times as fast", "CPU ms",
                "page faults a step", "peak RSS MB"]  # fmt: skip
    rows = []
    for cell in cells:
        for side, median in cell["medians"].items():
            times = [row["ms"] for row in cell["all"][side]]
            span = f"{median['ms']:.1f} ({min(times):.1f}–{max(times):.1f})"
            rows.append(
                [cell["workload"], side, str(cell["batch_size"]), span, format_ratio(cell["times_as_fast"][side]),
                 f"{median['cpu_ms']:.1f}", f"{median['page_faults_per_step']:,.0f}", f"{median['peak_rss_mb']:,.0f}"]
            )  # fmt: skip
    return [Table("A training step by glibc's allocator", headings, rows, words=2)]


BENCHMARK = Benchmark(
    measure, tabulate, ("workload", "batch_size"), part="workload",
    options=(
        Option("workload", "The workload.", "mnist", "mlp", choices=tuple(WORKLOADS), metavar="NAME"),
        Option("batch", "Images.", 128, 16, read_count, metavar="N"),
        Option("rounds", "Fresh processes of each side.", 5, 1, read_count, metavar="N"),
        Option("seconds", "Seconds that are measured in each process.", 3.0, 0.05, read_number),
    ),
)  # fmt: skip
