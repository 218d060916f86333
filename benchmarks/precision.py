"""Latency of inference in float32, bfloat16 and int8: ours, Qwix's, PyTorch's and ONNX Runtime's, side by side.

    python benchmarks/precision.py [--models resnet20 mlp ...] [--batch 1 16] [--repeats 15] [--no-rivals]
                                   [--peers-python PATH]
    python benchmarks/precision.py --layers [--batch 1 16]

Variants take turns, repeat by repeat, so that a busy moment of the machine hits them all. Before they are timed,
their results are compared with those of float32. README.md says what each variant is and what the columns mean.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import precision_layers
import record
from networks import NETWORKS, Network
from rich.console import Console
from rich.table import Table
from train_step import Process, Remote, measure
from variants import LIMITS, Compiled, Variant, explained_share, ours, qwix, relative_error

from jaxaccel.core import runtime


def cell(
    network: Network, batch_size: int, options: argparse.Namespace, peers: Process | None
) -> dict[str, Any]:
    """Everything about one network at one batch size: each variant checked, then all timed in turns."""
    x = network.examples(batch_size)
    variants, failed = list(ours(network, batch_size)), {}
    for made in qwix(network, variants[0].params) if options.rivals else ():
        if isinstance(made, Variant):
            variants.append(made)
        else:
            failed[made[0]] = made[1]
    entries = [Compiled(variant, x) for variant in variants]
    reference = entries[0].output()
    errors = [relative_error(entry.output(), reference) for entry in entries]
    check(network, entries, errors)
    made = peers.ask(network=network.name, shape=x.shape) if peers else {"names": (), "versions": {}}
    others = [Remote(peers, name, "peer") for name in made["names"]] if peers else []
    rows = measure([*entries, *others], options.repeats, options.seconds, options.budget)
    for row in rows:
        row["ratio"] = row["median_ms"] / rows[0]["median_ms"]
    for row, entry, variant, error in zip(rows, entries, variants, errors, strict=False):
        row |= {
            "relative_error": error,
            "explained_share": explained_share(variant, x),
            "compiled_share": entry.compiled_share(),
            "weight_bytes": entry.weight_bytes,
        }
    return {
        "model": network.name, "batch_size": batch_size, "variants": rows, "failed": failed,
        "peers": made["versions"],
    }  # fmt: skip


def check(network: Network, entries: Sequence[Compiled], errors: Sequence[float]) -> None:
    """Ends the benchmark where a variant computes something else than the network."""
    for entry, error in zip(entries, errors, strict=True):
        if not error <= LIMITS[entry.dtype]:
            sys.exit(f"{network.name}, {entry.name}: the result is off by {error:.1%} of float32's")


def table(network: Network, cells: Sequence[dict[str, Any]], where: dict[str, Any]) -> Table:
    """One line a variant and batch size; `× float32` below 1 is faster than float32."""
    shown = Table(title=f"{network.name}, {where['device_kind']} ({where['cpu']}, {where['cores']} cores)")
    shown.add_column("batch", justify="right")
    shown.add_column("variant")
    for heading in ("ms (min–max)", "× float32", "relative error", "narrow", "narrow in HLO", "weights MB"):
        shown.add_column(heading, justify="right", style="bold" if heading == "× float32" else None)
    for entry in cells:
        for row in entry["variants"]:
            time = f"{row['median_ms']:.3g} ({row['min_ms']:.3g}–{row['max_ms']:.3g})"
            line = [str(entry["batch_size"]), row["name"], time, f"{row['ratio']:.2f}"]
            if row["group"] != "peer":
                said = row["explained_share"]
                line += [
                    f"{row['relative_error']:.1e}", "-" if said is None else f"{said:.0%}",
                    f"{row['compiled_share']:.0%}", f"{row['weight_bytes'] / 1e6:.2f}",
                ]  # fmt: skip
            shown.add_row(*line)
        shown.add_section()
    failed = {name: why for entry in cells for name, why in entry["failed"].items()}
    shown.caption = "\n".join(f"{name} cannot do it: {why}" for name, why in failed.items()) or None
    return shown


def networks(options: argparse.Namespace, console: Console) -> None:
    """All cells asked for; a network's file is written anew after each of them.

    Cells of other batch sizes that the same versions on the same processor left there stay.
    """
    where = record.machine()
    if options.rivals:
        where["versions"]["qwix"] = metadata.version("qwix")
    peers = Process(options.peers_python, "peers.py") if options.peers_python else None
    for name in options.models:
        file = options.out / record.path(f"precision-{name}", where).name
        cells = [c for c in record.cells(file, where) if c["batch_size"] not in options.batch]
        for batch_size in options.batch:
            cells.append(cell(NETWORKS[name], batch_size, options, peers) | {"date": where["date"]})
            record.write(file, {"machine": where, "repeats": options.repeats, "cells": cells})
        console.print(table(NETWORKS[name], cells, where))
        console.print(f"written to {file}")
    if peers:
        peers.close()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="default: all")
    add("--batch", nargs="+", type=int, default=[1, 16], help="batch sizes (default: 1 16)")
    add("--repeats", type=int, default=15, help="turns of each variant (default: 15)")
    add("--seconds", type=float, default=0.2, help="about how long one turn takes (default: 0.2)")
    add(
        "--budget", type=float, default=math.inf, help="seconds for the turns of one cell (default: no limit)"
    )
    add(
        "--rivals", action=argparse.BooleanOptionalAction, default=util.find_spec("qwix") is not None,
        help="Qwix as well (default: where it is installed)",
    )  # fmt: skip
    add(
        "--peers-python", metavar="PATH",
        help="a Python with torch, torchvision, onnx, onnxscript and onnxruntime: PyTorch and ONNX Runtime as well",
    )  # fmt: skip
    add("--layers", action="store_true", help="time single matrix products and convolutions instead")
    add("--static", action="store_true", help="of --layers: inputs quantised at a scale known beforehand")
    add("--sites", nargs="+", metavar="WORD", help="of --layers: those whose names hold one of these words")
    add(
        "--out", type=Path, default=record.RESULTS, help="directory of the JSON (default: benchmarks/results)"
    )
    options = parser.parse_args(argv)
    runtime.setup()
    # In a file or a pipe the table is as wide as it needs to be.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 210)
    (precision_layers.layers if options.layers else networks)(options, console)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
