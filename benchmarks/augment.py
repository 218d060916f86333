"""Images a second of each augmentation and of three usual policies, against dm_pix, augmax, torchvision and Pillow.

    python benchmarks/augment.py [--quick] [--size 32] [--batch 32] [--only rotate ...] [--torch-python PATH]

Contenders take turns, round by round. At the end: the share of a training step that a policy takes. README.md says what
each contender does and what the columns mean.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import record
from augment_steps import images, step
from augmentations import ONE_BY_ONE, OURS, POLICIES, contenders
from rich.console import Console
from rich.table import Table
from train_step import Process, Remote
from turns import measured, ratio, spread, timed

from jaxaccel import augment
from jaxaccel.core import runtime

FLOAT, EIGHT = "jaxaccel", "jaxaccel, uint8"
RIVALS = {
    "dm_pix": FLOAT, "augmax": FLOAT, "torchvision": EIGHT, "torchvision, 1 thread": EIGHT, "Pillow": EIGHT
}  # fmt: skip
"""With which of ours each is compared: on the same dtype."""

LARGE = ("horizontal_flip", "rotate", "color_jitter", *POLICIES)
"""Measured in large batches of large images too; of the others 32 say enough."""


def cell(name: str, size: int, batch: int, torch: Process | None, options: argparse.Namespace) -> Any:
    """All contenders of one augmentation at one shape."""
    turns = {who: timed(call) for who, call in contenders(name, size, batch)}
    fewer = min(batch, ONE_BY_ONE)
    if torch and name in POLICIES:
        names = torch.ask(policy=name, size=size, batch_size=fewer)["names"]
        turns |= {who: Remote(torch, who, "torch").run for who in names}
    times = measured(turns, options.seconds, options.rounds, options.budget)
    times |= {
        who: [t * batch / fewer for t in times[who]] for who in times if RIVALS.get(who) == EIGHT
    }  # of the whole batch
    rows = {who: spread(t, "_ms") for who, t in times.items()}
    for row in rows.values():
        row["images_per_second"] = 1e3 * batch / row["median_ms"]
    ratios = {rival: ratio(times[rival], times[ours]) for rival, ours in RIVALS.items() if rival in times}
    return {"augmentation": name, "size": size, "batch_size": batch, "rounds": len(times[FLOAT]),
            "contenders": rows, "times_as_fast_as": ratios}  # fmt: skip


def training_shares(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of a training step with and without augmentation, and of the augmentation alone."""
    cells, key = [], jax.random.key(0)
    networks = [("resnet20", 32, 128, 10, "CIFAR"), ("resnet50", 224, 16, 1000, "Inception")]
    for network, size, batch, classes, policy in networks[: 1 if options.quick else 2]:
        data = images(size, batch, classes)
        alone = jax.jit(POLICIES[policy])
        turns = {
            "none": timed(step(network, data, classes, augment.chain())),
            policy: timed(step(network, data, classes, POLICIES[policy])),
            "alone": timed(lambda alone=alone, data=data: jax.block_until_ready(alone(key, data))),
        }
        times = measured(turns, 0.5, options.rounds, 45)
        share = [1 - none / some for none, some in zip(times["none"], times[policy], strict=True)]
        of_alone = [alone / some for alone, some in zip(times["alone"], times[policy], strict=True)]
        cells.append(
            {"network": network, "size": size, "batch_size": batch, "policy": policy, "rounds": len(share),
             "steps": {name: spread(t, "_ms") for name, t in times.items()},
             "share": spread(share), "alone_share": spread(of_alone)}
        )  # fmt: skip
    return cells


def table(cells: list[dict[str, Any]], size: int, batch: int) -> Table:
    """Images a second, and how many times as fast as each rival."""
    shown = Table(title=f"{size}x{size}, batch {batch}: images a second")
    names = [FLOAT, EIGHT, *RIVALS]
    for column in ("augmentation", *names, *(f"× {rival}" for rival in RIVALS)):
        shown.add_column(column, justify="left" if column == "augmentation" else "right")
    for cell in cells:
        if (cell["size"], cell["batch_size"]) == (size, batch):
            rows, ratios = cell["contenders"], cell["times_as_fast_as"]
            speeds = [f"{rows[name]['images_per_second']:,.0f}" if name in rows else "" for name in names]
            times = [f"{ratios[rival]:.2f}" if rival in ratios else "" for rival in RIVALS]
            shown.add_row(cell["augmentation"], *speeds, *times)
    return shown


def plot(cells: list[dict[str, Any]], file: Path) -> None:
    """How many times as fast as the fastest rival each augmentation is."""
    compared = [cell for cell in cells if cell["times_as_fast_as"]]
    if not compared:
        return
    names = list(dict.fromkeys(cell["augmentation"] for cell in compared))
    shapes = list(dict.fromkeys((cell["size"], cell["batch_size"]) for cell in compared))
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(names) + 1.5), layout="constrained")
    for number, shape in enumerate(shapes):
        found = {
            cell["augmentation"]: min(cell["times_as_fast_as"].values())
            for cell in compared
            if (cell["size"], cell["batch_size"]) == shape
        }
        places = [names.index(name) + 0.15 * (number - (len(shapes) - 1) / 2) for name in found]
        axes.plot(list(found.values()), places, "o", label=f"{shape[0]}x{shape[0]}, batch {shape[1]}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times as fast as the fastest rival", ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", type=int, nargs="+", default=[32, 224], help="height and width (default: 32 224)")
    add("--batch", type=int, nargs="+", default=[32, 256], help="batch sizes (default: 32 256)")
    add("--only", nargs="+", choices=list(OURS), help="of the augmentations, these")
    add("--rounds", type=int, default=9, help="turns of each contender (default: 9)")
    add("--seconds", type=float, default=0.02, help="of a turn (default: 0.02)")
    add("--budget", type=float, default=0.5, help="seconds of rounds beyond the third (default: 0.5)")
    here = sys.executable if find_spec("torchvision") else None
    add("--torch-python", default=here, help="the Python that has torchvision")
    add("--no-torch", dest="torch_python", action="store_const", const=None, help="leave torchvision out")
    add("--no-training", action="store_true", help="leave the training steps out")
    add("--quick", action="store_true", help="only shows that all works")
    add("--out", type=Path, default=record.RESULTS, help="of JSON and plot (default: benchmarks/results)")
    options = parser.parse_args(argv)
    if options.quick:
        options.size, options.batch, options.rounds, options.seconds = [32], [32], 1, 0.0
    runtime.keep_freed_memory()
    where, console = record.machine(), Console(width=None if sys.stdout.isatty() else 180)
    torch = Process(options.torch_python, "torch_augment.py") if options.torch_python else None
    if torch:
        where["versions"] |= torch.ask(policy="CIFAR", size=32, batch_size=1)["versions"]
    file = options.out / record.path("augment", where).name
    cells: list[dict[str, Any]] = []
    for size in options.size:
        for batch in options.batch:
            for name in options.only or OURS:
                if size * batch < 224 * 256 or name in LARGE:
                    cells.append(cell(name, size, batch, torch, options))
            console.print(table(cells, size, batch))
            record.write(file, {"machine": where, "cells": cells, "training": []})
    if torch:
        torch.close()
    shares = [] if options.no_training else training_shares(options)
    for found in shares:
        steps, share, alone = found["steps"], found["share"], found["alone_share"]
        console.print(
            f"{found['network']} at {found['size']}x{found['size']}, batch {found['batch_size']}: "
            + ", ".join(f"{name} {row['median_ms']:.1f} ms" for name, row in steps.items())
            + f": {share['median']:.1%} of a step ({share['min']:.1%} to {share['max']:.1%}), "
            f"alone {alone['median']:.1%}"
        )
    record.write(file, {"machine": where, "cells": cells, "training": shares})
    plot(cells, file.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
