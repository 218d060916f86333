"""Serves a network and asks it at several rates, with batches and without.

    python -m benchmarks serving
    python -m benchmarks serving --rates 20 80 --delays 0 2 --load-seconds 20
    python -m benchmarks serving --soak-seconds 600 --rates 80 --delays 2

Requests come by gRPC from another process on the same machine, at random moments (a Poisson process), whether or not
those before are answered. A latency counts from the moment at which its request was due, so a server that falls behind
is seen to. *asked* and *answered* are requests a second; *refused* is the share that a full queue of 256 refused. The
network has 34 million weights in four layers, which a batch reads from memory once. *Calls one after another* are of a
model that computes nothing, without a delay: what the protocol costs.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, read_count, read_number
from benchmarks.records import Cell
from benchmarks.serving_load import (
    Place,
    load_openly,
    read_batches,
    read_memory,
    running_server,
    time_arrivals,
    time_calls,
)
from benchmarks.tables import Table, format_short

PROTOCOLS = ("HTTP, binary", "HTTP, JSON", "gRPC")
PERCENTILES = (50, 90, 99, 99.9)
SOAK_ROUNDS = 20
"""How often a soak reads the memory."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields cells of single calls, of rates, and of a soak where one is asked for."""
    with running_server("nothing", 1, 0) as place:
        for protocol in PROTOCOLS:
            time_calls(place, protocol, options.calls // 10 + 1)
            seconds = time_calls(place, protocol, options.calls)
            yield {
                "what": "calls",
                "max_batch": 1,
                "delay_ms": 0,
                "rate": 0,
                "protocol": protocol,
                **tell(seconds),
            }
    variants = [(1, 0.0), *((options.max_batch, delay) for delay in options.delays)]
    for max_batch, delay in variants:
        with running_server("mlp", max_batch, delay) as place:
            for rate in options.rates:
                yield name_cell("rates", max_batch, delay, rate) | load_once(
                    place, rate, options.load_seconds, range(options.rounds)
                )
    if options.soak_seconds:
        delay, rate = options.delays[-1], options.rates[-1]
        with running_server("mlp", options.max_batch, delay) as place:
            yield name_cell("soak", options.max_batch, delay, rate) | soak(place, rate, options.soak_seconds)


def name_cell(what: str, max_batch: int, delay: float, rate: float, protocol: str = "gRPC") -> Cell:
    """Names a cell by what tells it from others."""
    return {"what": what, "max_batch": max_batch, "delay_ms": delay, "rate": rate, "protocol": protocol}


def load_once(place: Place, rate: float, seconds: float, seeds: Sequence[int] = (0,)) -> Cell:
    """Measures one rate, once for each seed of the arrivals."""
    batches, examples = read_batches(place)
    latencies, refused, taken = [], 0, 0.0
    for seed in seeds:
        arrivals = time_arrivals(rate, seconds, seed).tolist()
        found, more, lasted = asyncio.run(load_openly(place.grpc, "mlp", arrivals))
        latencies, refused, taken = latencies + found, refused + more, taken + lasted
    batches_after, examples_after = read_batches(place)
    return {
        "answered": len(latencies) / taken, "refused": refused / (len(latencies) + refused),
        "batch": (examples_after - examples) / max(batches_after - batches, 1),
        **tell(latencies or [float("nan")]),
    }  # fmt: skip


def soak(place: Place, rate: float, seconds: float) -> Cell:
    """Measures memory while one rate goes on."""
    load_once(place, rate, seconds / SOAK_ROUNDS)
    memory, found, begin = [read_memory(place)], [], time.monotonic()
    while time.monotonic() - begin < seconds:
        found.append(load_once(place, rate, seconds / SOAK_ROUNDS, (len(found) + 1,)))
        memory.append(read_memory(place))
    return {
        "seconds": time.monotonic() - begin, "memory_mb": memory,
        "answered": statistics.mean(cell["answered"] for cell in found),
        "refused": statistics.mean(cell["refused"] for cell in found),
        "batch": statistics.mean(cell["batch"] for cell in found),
        "latency_ms": {str(p): max(cell["latency_ms"][str(p)] for cell in found) for p in PERCENTILES},
    }  # fmt: skip


def tell(seconds: Sequence[float]) -> Cell:
    """Tells the percentiles of latencies, in milliseconds."""
    values = np.percentile(np.asarray(seconds) * 1e3, PERCENTILES)
    return {
        "latency_ms": {str(p): float(v) for p, v in zip(PERCENTILES, values, strict=True)},
        "count": len(seconds),
    }


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table of calls, one of rates, and one of the soak."""
    calls = [
        [cell["protocol"], *(format_short(cell["latency_ms"][str(p)]) for p in (50, 99))]
        for cell in cells
        if cell["what"] == "calls"
    ]
    rates = [describe_rate(cell) for cell in cells if cell["what"] == "rates"]
    soaks = [
        [
            format_short(cell["seconds"]), format_short(cell["rate"]), format_short(cell["answered"]),
            format_short(cell["latency_ms"]["99"]), format_short(cell["memory_mb"][0]),
            format_short(max(cell["memory_mb"])), format_short(cell["memory_mb"][-1]),
        ]
        for cell in cells
        if cell["what"] == "soak"
    ]  # fmt: skip
    headings = [
        "batch at most",
        "delay ms",
        "asked",
        "answered",
        "refused",
        "batch",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
    ]
    found = [
        Table("Calls one after another", ["protocol", "p50 ms", "p99 ms"], calls),
        Table("Latency and throughput by rate", headings, rates, words=0, notes=compare_batches(cells)),
    ]
    if soaks:
        headings = ["seconds", "asked", "answered", "worst p99 ms", "MB at first", "MB at most", "MB at last"]
        found.append(Table("Memory over a long load", headings, soaks, words=0))
    return found


def describe_rate(cell: Cell) -> list[str]:
    """Describes a cell of a rate as a row."""
    times = [format_short(cell["latency_ms"][str(p)]) for p in PERCENTILES]
    refused = f"{100 * cell['refused']:.1f}%" if cell["refused"] else "0"
    return [
        str(cell["max_batch"]), format_short(cell["delay_ms"]), format_short(cell["rate"]),
        format_short(cell["answered"]), refused, format_short(cell["batch"]), *times,
    ]  # fmt: skip


def compare_batches(cells: Sequence[Cell]) -> list[str]:
    """Says how much more is answered with batches than without."""
    most: dict[bool, float] = {}
    for cell in cells:
        if cell["what"] == "rates":
            joined = cell["max_batch"] > 1
            most[joined] = max(most.get(joined, 0.0), cell["answered"])
    if len(most) < 2:
        return []
    return [
        f"At most {format_short(most[True])} requests a second are answered with batches and "
        f"{format_short(most[False])} without: {most[True] / most[False]:.1f} times as many."
    ]


BENCHMARK = Benchmark(
    measure, tabulate, ("what", "protocol", "max_batch", "delay_ms", "rate"),
    options=(
        Option("rates", "Requests a second.", (10, 20, 40, 80, 160, 320), (20,), read_number, several=True,
               metavar="N"),
        Option("delays", "Milliseconds for which a batch waits.", (0, 2, 10), (2,), read_number, several=True,
               metavar="MS"),
        Option("max_batch", "Examples of a batch at most.", 32, None, read_count, metavar="N"),
        Option("rounds", "Times that each rate is asked.", 1, 1, read_count, metavar="N"),
        Option("load_seconds", "Seconds of each.", 6, 0.5, read_number),
        Option("calls", "Calls one after another.", 2000, 20, read_count, metavar="N"),
        Option("soak_seconds", "Seconds of the last rate and delay, with memory read (0: none).", 0, 0, read_number),
    ),
)  # fmt: skip
