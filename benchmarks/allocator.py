"""A small ConvNet's training step with glibc's allocator as it ships, and told to keep freed memory.

    python benchmarks/allocator.py [--rounds 5] [--workload mnist] [--batch 128]

Each measurement is a fresh process, for the setting cannot be taken back; the sides take turns. What it costs
is memory: freed pages stay with the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, data

SETTINGS = {
    "as shipped": {"JAXACCEL_ALLOCATOR": "0"},
    "keeps freed memory, many arenas": {"JAXACCEL_ALLOCATOR": "1", "MALLOC_ARENA_MAX": "16"},
    "keeps freed memory": {"JAXACCEL_ALLOCATOR": "1"},
}
"""Environment of each side. Arenas: threads other than the first allocate from heaps of 64 MB at most."""


def child(workload: str, batch_size: int, seconds: float) -> dict[str, Any]:
    """Measures in this process, whose allocator stands as JAXACCEL_ALLOCATOR says."""
    from jaxaccel.core import runtime

    said = runtime.keep_freed_memory()
    from jax_steps import Jaxaccel  # only now, so that the setting comes before everything else

    images, labels = data(WORKLOADS[workload], 8192)
    step = Jaxaccel(WORKLOADS[workload], images, labels, batch_size)
    steps = max(8, round(seconds / min(step.run(4), step.run(4))))
    before = resource.getrusage(resource.RUSAGE_SELF)
    milliseconds = 1e3 * step.run(steps)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "allocator": said,
        "ms": milliseconds,
        "cpu_ms": 1e3 * (usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime) / steps,
        "page_faults_per_step": (usage.ru_minflt - before.ru_minflt) / steps,
        "peak_rss_mb": usage.ru_maxrss / 1024,
    }


def compare(workload: str, batch_size: int, rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """All measurements of each side, taken in turns."""
    command = [sys.executable, __file__, "--child", "--workload", workload, "--batch", str(batch_size)]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SETTINGS}
    for _ in range(rounds):
        for side, environment in SETTINGS.items():
            done = subprocess.run(
                [*command, "--seconds", str(seconds)], env=os.environ | environment,
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", choices=list(WORKLOADS), default="mnist")
    add("--batch", type=int, default=128)
    add("--rounds", type=int, default=5, help="fresh processes of each side (default: 5)")
    add("--seconds", type=float, default=3.0, help="measured in each process (default: 3)")
    add("--out", type=Path, help="directory of the JSON (default: benchmarks/results)")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(child(options.workload, options.batch, options.seconds)))
        return 0

    found = compare(options.workload, options.batch, options.rounds, options.seconds)
    import record
    from rich.console import Console
    from rich.table import Table

    where = record.machine()
    medians = {
        side: {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "allocator"}
        for side, rows in found.items()
    }
    shipped = medians["as shipped"]["ms"]
    times_as_fast = {side: shipped / median["ms"] for side, median in medians.items()}
    table = Table(
        "allocator", "ms a step", "min–max", "times as fast", "CPU ms", "page faults a step", "peak RSS MB"
    )
    for side, median in medians.items():
        span = [row["ms"] for row in found[side]]
        table.add_row(
            side, f"{median['ms']:.2f}", f"{min(span):.2f}–{max(span):.2f}", f"{times_as_fast[side]:.2f}",
            f"{median['cpu_ms']:.2f}", f"{median['page_faults_per_step']:,.0f}", f"{median['peak_rss_mb']:,.0f}",
        )  # fmt: skip
    Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(table)
    file = record.path(f"allocator-{options.workload}", where)
    record.write(
        (options.out or file.parent) / file.name,
        {"machine": where, "workload": options.workload, "batch_size": options.batch, "medians": medians,
         "times_as_fast": times_as_fast, "all": found},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
