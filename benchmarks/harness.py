"""What a benchmark is, and how one runs: options, cells, record, tables, plot."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import records
from benchmarks.options import COMMON, Option, Options, read_options
from benchmarks.peers.process import MISSING, Peer, choose_peers
from benchmarks.records import Cell
from benchmarks.tables import Table, show_tables
from jaxaccel.core import runtime


def keep_memory(options: Options) -> None:
    """Sets the allocator as the trainer does, for all contenders alike."""
    runtime.keep_freed_memory()


def set_up_trainer(options: Options) -> None:
    """Prepares the process as the trainer does: allocator and compile cache."""
    runtime.setup()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark. Its name is that of its module, and what it teaches that module's docstring."""

    measure: Callable[[Options], Iterator[Cell]]
    """Yields cells as they are measured. A cell's `versions` are those of peers."""
    tabulate: Callable[[Sequence[Cell]], Sequence[Table]]
    """Makes tables of cells, for the terminal and for docs/benchmarks."""
    key: Sequence[str]
    """The names of the values by which cells are told apart."""
    options: Sequence[Option] = ()
    peers: Sequence[Peer] = ()
    part: str = ""
    """The one of `key` that has a record for each of its values."""
    prepare: Callable[[Options], None] = keep_memory
    """What is done before JAX sees a device."""
    plot: Callable[[Sequence[Cell], Mapping[str, Any], Path], None] | None = None
    """Draws (cells, machine) into a file beside the record."""


def run_benchmark(name: str, module: ModuleType, words: Sequence[str]) -> int:
    """Runs the benchmark of a module: measures, writes the record after each cell, shows the tables."""
    benchmark: Benchmark = module.BENCHMARK
    options = read_options(name, module.__doc__ or "", collect_options(benchmark), words)
    options.peers = choose_peers(benchmark.peers, options)
    benchmark.prepare(options)
    record = Record(name, benchmark, words, options)
    for cell in benchmark.measure(options):
        record.add(cell)
    show_tables(benchmark.tabulate(record.measured))
    record.plot()
    print("\n".join(f"written to {file}" for file in record.files) or "quick: nothing is written")
    return 0


def collect_options(benchmark: Benchmark) -> list[Option]:
    """Collects the options of a benchmark and those that all have."""
    found = [*benchmark.options, *COMMON]
    if benchmark.peers:
        names = [*(peer.name for peer in benchmark.peers), MISSING]
        about = "Peers to leave out; missing are those that are not installed."
        found.append(Option("without", about, (), choices=names, several=True, metavar="PEER"))
    if any(peer.apart for peer in benchmark.peers):
        apart = " and ".join(peer.name for peer in benchmark.peers if peer.apart)
        found.append(
            Option("peers_python", f"The Python that has {apart} (default: this one).", metavar="PATH")
        )
    return found


class Record:
    """The files that a run writes: one, or one for each value of the benchmark's `part`."""

    def __init__(self, name: str, benchmark: Benchmark, words: Sequence[str], options: Options) -> None:
        self.measured: list[Cell] = []
        self.files: list[Path] = []
        self._name, self._benchmark, self._options = name, benchmark, options
        self._command = shlex.join(["python", "-m", "benchmarks", name, *words])
        self._machine = records.describe_machine()
        self._writes = not options.quick or options.output != records_directory()

    def add(self, cell: Cell) -> None:
        """Adds a cell, and writes its file anew."""
        versions = {**self._machine["versions"], **cell.pop("versions", {})}
        self.measured.append(cell)
        print(" ".join(str(cell[name]) for name in self._benchmark.key), "measured", flush=True)
        if not self._writes:
            return
        part = self._benchmark.part
        file = self._options.output / records.name_file(
            self._name, str(cell[part]) if part else "", self._machine
        )
        machine = {**self._machine, "versions": versions}
        cells = [c for c in self.measured if not part or c[part] == cell[part]]
        cells = json.loads(json.dumps([{**c, "date": machine["date"]} for c in cells]))
        merged = records.merge_cells(file, machine, cells, self._benchmark.key, self._options.quick)
        record = {
            "benchmark": self._name, "command": self._command, "machine": machine, "quick": self._options.quick,
            "ratios": records.PAIRED, "cells": merged,
        }  # fmt: skip
        records.write_record(file, record)
        if file not in self.files:
            self.files.append(file)

    def plot(self) -> None:
        """Draws the plot beside each record."""
        if self._benchmark.plot:
            for file in list(self.files):
                record = records.read_record(file)
                self._benchmark.plot(record["cells"], record["machine"], file.with_suffix(".png"))


def records_directory() -> Path:
    """Tells where records go unless the user says otherwise."""
    return COMMON[0].default
