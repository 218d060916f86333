"""Milliseconds a training step takes: jaxaccel, a hand-written Flax NNX loop and PyTorch eager, side by side.

    python benchmarks/train_step.py [--quick] [--workload digits ...] [--batch 64 ...] [--torch-python PATH]

Contenders take turns round by round, so that a busy moment of the machine hits them all. README.md says what
each does and what the columns mean.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import record
from jax_steps import Jaxaccel, contenders, scanned
from rich.console import Console
from rich.table import Table
from workloads import WORKLOADS, Workload, data

from jaxaccel.core import runtime

BATCHES = (64, 256, 1024)
PAUSE = 0.3
"""Seconds after the turn of another process, whose threads go on spinning for a while and would slow the next one."""


class Contender(Protocol):
    """One way to take training steps."""

    group: str
    """jaxaccel, nnx or torch; of a group's members the fastest counts."""
    name: str

    def run(self, steps: int) -> float:
        """Seconds a step, over about `steps` steps, waited for."""
        ...


class Process:
    """Another Python that runs a script beside this one: commands and answers are lines of JSON."""

    def __init__(self, python: str, script: str) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **command: Any) -> Any:
        """Sends a command and waits for its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args} ended with code {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


class TorchProcess(Process):
    """The process that runs torch_steps.py."""

    def __init__(self, python: str) -> None:
        super().__init__(python, "torch_steps.py")
        self.version = ""

    def contenders(self, workload: Workload, examples: int, batch_size: int) -> Iterator["Remote"]:
        """One for each memory layout worth trying."""
        made = self.ask(workload=workload.name, examples=examples, batch_size=batch_size)
        self.version = f"{made['torch']} on {made['device']}"
        return (Remote(self, name, "torch") for name in made["names"])


class Remote:
    """What another process runs under this name."""

    def __init__(self, process: Process, name: str, group: str) -> None:
        self.name, self.group, self._process = name, group, process

    def run(self, steps: int) -> float:
        """Seconds a step, measured over there."""
        seconds = self._process.ask(name=self.name, steps=steps)
        time.sleep(PAUSE)
        return seconds


def measure(entries: Sequence[Contender], rounds: int, seconds: float, budget: float) -> list[dict[str, Any]]:
    """Milliseconds a step of each contender: median, min and max over the rounds.

    Args:
      entries: they run one after the other in each round, each time another one first.
      rounds: as many, or fewer (at least 3) once `budget` seconds are spent.
      seconds: about how long one turn is to take.
      budget: seconds for all rounds together.
    """
    steps = [max(1, round(seconds / min(entry.run(1), entry.run(1)))) for entry in entries]
    times: list[list[float]] = [[] for _ in entries]
    start = time.perf_counter()
    for turn in range(rounds):
        for i in ((turn + j) % len(entries) for j in range(len(entries))):
            times[i].append(1e3 * entries[i].run(steps[i]))
        if turn >= 2 and time.perf_counter() - start > budget:
            break
    return [
        {
            "group": entry.group, "name": entry.name, "steps_per_round": n, "rounds": len(row),
            "median_ms": statistics.median(row), "min_ms": min(row), "max_ms": max(row),
        }
        for entry, n, row in zip(entries, steps, times, strict=True)
    ]  # fmt: skip


def cell(workload: Workload, batch_size: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of one workload at one batch size: the fastest of each group, and all rows."""
    best = {
        group: min((r for r in rows if r["group"] == group), key=lambda r: r["median_ms"])
        for group in dict.fromkeys(r["group"] for r in rows)
    }
    ours = best["jaxaccel"]["median_ms"]
    return {
        "workload": workload.name, "batch_size": batch_size,
        "best": {
            group: {
                **{key: row[key] for key in ("name", "median_ms", "min_ms", "max_ms")},
                "examples_per_second": batch_size / row["median_ms"] * 1e3,
            }
            for group, row in best.items()
        },
        "times_as_fast_as": {g: row["median_ms"] / ours for g, row in best.items() if g != "jaxaccel"},
        "all": rows,
    }  # fmt: skip


def table(cells: Sequence[dict[str, Any]], where: dict[str, Any]) -> Table:
    """One line a cell; a ratio above 1 says that jaxaccel is that many times as fast."""
    shown = Table(title=f"Training step, {where['device_kind']} ({where['cpu']}, {where['cores']} cores)")
    for heading in (
        "workload",
        "batch",
        "jaxaccel ms",
        "examples/s",
        "NNX ms",
        "best NNX",
        "PyTorch ms",
        "layout",
    ):
        shown.add_column(
            heading, justify="left" if heading in ("workload", "best NNX", "layout") else "right"
        )
    shown.add_column("× NNX", justify="right", style="bold")
    shown.add_column("× PyTorch", justify="right", style="bold")
    for entry in cells:
        best, ratios = entry["best"], entry["times_as_fast_as"]
        peers = [
            f(best[g]) if g in best else "-" for g in ("nnx", "torch") for f in (_ms, lambda b: b["name"])
        ]
        rate = f"{best['jaxaccel']['examples_per_second']:,.0f}"
        shown.add_row(
            entry["workload"], str(entry["batch_size"]), _ms(best["jaxaccel"]), rate, *peers,
            *(f"{ratios[g]:.2f}" if g in ratios else "-" for g in ("nnx", "torch")),
        )  # fmt: skip
    return shown


def _ms(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.3g} ({row['min_ms']:.3g}–{row['max_ms']:.3g})"


def side_by_side(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Runs all cells asked for, and writes one file a workload, anew after each cell."""
    python = options.torch_python
    torch = TorchProcess(python) if python else None
    where, shown = record.machine(), []
    for workload in options.workload:
        cells = []
        file = options.out / record.path(f"train_step-{workload.name}", where).name
        for batch_size in options.batch:
            examples = min(workload.examples, 4096) if options.quick else workload.examples
            images, labels = data(workload, max(examples, batch_size))
            entries: list[Contender] = list(contenders(workload, images, labels, batch_size))
            fused = next(entry.steps_per_call for entry in entries if isinstance(entry, Jaxaccel))
            if torch:
                entries += torch.contenders(workload, len(images), batch_size)
                where["versions"]["torch"] = torch.version
            rows = measure(entries, options.rounds, options.seconds, options.budget)
            cells.append(cell(workload, batch_size, rows) | {"steps_per_call": fused})
            record.write(file, {"machine": where, "quick": options.quick, "cells": cells})
            console.print(
                f"{workload.name} {batch_size}: " + ", ".join(f"{r['name']} {_ms(r)}" for r in rows)
            )
        console.print(f"written to {file}")
        shown += cells
    if torch:
        torch.close()
    console.print(table(shown, where))
    return shown


def rolled(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """jaxaccel's steps fused by a rolled and by an unrolled `jax.lax.scan`."""
    where, cells = record.machine(), []
    shown = Table("workload", "batch", "steps a call", "unrolled ms", "rolled ms", "rolled / unrolled")
    for workload in options.workload:
        for batch_size in options.batch:
            images, labels = data(workload, min(workload.examples, max(4096, batch_size)))
            fused = Jaxaccel(workload, images, labels, batch_size).steps_per_call
            entries = [
                Jaxaccel(
                    workload, images, labels, batch_size, steps_per_call=max(2, fused), fuse=scanned(unroll)
                )
                for unroll in (True, False)
            ]
            for entry, name in zip(entries, ("unrolled", "rolled"), strict=True):
                entry.name = name
            rows = measure(entries, options.rounds, options.seconds, options.budget)
            ratio = rows[1]["median_ms"] / rows[0]["median_ms"]
            cells.append(
                {"workload": workload.name, "batch_size": batch_size, "steps_per_call": max(2, fused),
                 "rolled_over_unrolled": ratio, "all": rows}
            )  # fmt: skip
            shown.add_row(
                workload.name, str(batch_size), str(max(2, fused)), _ms(rows[0]), _ms(rows[1]), f"{ratio:.1f}"
            )
    record.write(options.out / record.path("rolled", where).name, {"machine": where, "cells": cells})
    console.print(shown)
    return cells


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="short rounds, little data: to see that all works")
    add("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), help="default: all")
    add("--batch", nargs="+", type=int, default=list(BATCHES), help="batch sizes (default: 64 256 1024)")
    add("--rounds", type=int, help="turns of each contender (default: 9, quick 3)")
    add("--seconds", type=float, help="about how long one turn takes (default: 0.5, quick 0.02)")
    add("--budget", type=float, default=45, help="seconds for the rounds of one cell (default: 45)")
    add(
        "--rolled", action="store_true", help="compare rolled and unrolled fusing of jaxaccel's steps instead"
    )
    add("--torch-python", default=_python_with_torch(), help="the Python that has PyTorch and NumPy")
    add("--no-torch", dest="torch_python", action="store_const", const=None, help="leave PyTorch out")
    add(
        "--out", type=Path, default=record.RESULTS, help="directory of the JSON (default: benchmarks/results)"
    )
    options = parser.parse_args(argv)
    options.workload = [WORKLOADS[name] for name in options.workload]
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (0.02 if options.quick else 0.5)
    runtime.setup()
    (rolled if options.rolled else side_by_side)(options, _console())
    return 0


def _console() -> Console:
    # In a file or a pipe the table is as wide as it needs to be.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 170)


def _python_with_torch() -> str | None:
    import importlib.util

    return sys.executable if importlib.util.find_spec("torch") else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
