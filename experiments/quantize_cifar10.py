"""What less precision costs a trained network: the published CIFAR-10 ResNets on all 10,000 test images.

    python experiments/quantize_cifar10.py --weights DIR --downloads DIR

prints one table: accuracy, bytes of the parameters, and latency of every variant. "bfloat16" and "every layer" round
also where this backend runs it slower than float32; the other int8 rows are what `ja.int8` does by itself.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cifar10 import PUBLISHED, accuracy, images, inference, milliseconds, network
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import cli
from jaxaccel.core import runtime


@dataclasses.dataclass(frozen=True)
class Options:
    """Which networks, and where they and the images are."""

    weights: Path
    """Directory with resnet20-*.th, resnet32-*.th, resnet44-*.th, resnet56-*.th."""
    downloads: Path | None = None
    """Directory with the files of CIFAR-10; not needed once the data set is prepared."""
    depths: tuple[int, ...] = (20, 32, 44, 56)
    limit: int = 10_000
    """How many test images."""
    calibration: int = 512
    """How many training images the static ranges are taken from."""
    out: Path | None = None
    """Also write the rows here, as JSON."""


def variants(f: Callable[..., Any], variables: Any, seen: np.ndarray) -> Iterator[tuple[str, Any, Any]]:
    """(name, function, parameters) of every row."""
    yield "float32", f, variables
    yield "bfloat16", ja.bfloat16(f, lowering="bfloat16"), variables
    g, folded = ja.fold(f, variables, seen[:1])
    q = ja.quantize(folded)
    ranges = ja.calibrate(g, folded, np.split(seen, max(1, len(seen) // 128)), method="mse")
    yield "int8 dynamic", ja.int8(g), q
    yield "int8 dynamic, every layer", ja.int8(g, lowering="int8"), q
    yield "int8 static", ja.int8(g, calibration=ranges), q
    yield "int8 static, every layer", ja.int8(g, calibration=ranges, lowering="int8"), q
    yield "int8 weights only", ja.int8(g, activations="none"), q
    yield "int4 weights only", ja.int8(g, activations="none"), ja.quantize(folded, bits=4)


def rows(options: Options, console: Console) -> Iterator[dict[str, Any]]:
    """One row for each network and variant."""
    x, labels = images("test", options.downloads)
    x, labels = x[: options.limit], labels[: options.limit]
    seen, _ = images(f"train[:{options.calibration}]", options.downloads)
    for depth in options.depths:
        model, variables = network(depth, options.weights)
        first = None
        for name, f, params in variants(inference(model), variables, seen):
            with console.status(f"ResNet-{depth}: {name}"):
                right = accuracy(f, params, x, labels)
                first = right if first is None else first
                yield {
                    "network": f"ResNet-{depth}",
                    "variant": name,
                    "accuracy": right,
                    "change": right - first,
                    "published": PUBLISHED.get(depth),
                    "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
                    "ms_1": milliseconds(f, params, x[:1]),
                    "ms_128": milliseconds(f, params, x[:128]),
                }


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/quantize_cifar10.py", __doc__ or "", Options, argv)
    runtime.setup()
    console, found = Console(), []
    for row in rows(options, console):
        found.append(row)
        console.print(f"{row['network']}  {row['variant']}: {row['accuracy']:.2f} %")
    table = Table(title=f"CIFAR-10 test, {options.limit:,} images, {jax.devices()[0].device_kind}")
    for header in (
        "network",
        "variant",
        "accuracy %",
        "change",
        "published %",
        "KiB",
        "ms, batch 1",
        "ms, batch 128",
    ):
        table.add_column(header, justify="left" if header in ("network", "variant") else "right")
    for row in found:
        published = f"{row['published']:.2f}" if row["variant"] == "float32" else ""
        table.add_row(
            row["network"], row["variant"], f"{row['accuracy']:.2f}", f"{row['change']:+.2f}", published,
            f"{row['bytes'] / 1024:,.0f}", f"{row['ms_1']:.2f}", f"{row['ms_128']:.1f}",
            end_section=row["variant"].startswith("int4"),
        )  # fmt: skip
    Console(width=max(100, console.width)).print(table)
    if options.out:
        record = {"versions": runtime.versions(), "device": jax.devices()[0].device_kind, "rows": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
