"""Images a second of each augmentation and of three usual policies, against dm_pix, augmax and Pillow.

    python benchmarks/augment.py [--size 32 224] [--batch 32 256] [--only rotate equalize] [--quick]

All work on float32 images in [0, 1] under jit, dm_pix and augmax mapped over the batch as their documentation says;
jaxaccel on uint8 besides. Pillow, one core, does what a data loader would. Contenders take turns, round by round.
At the end: the share of a training step that a policy takes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import record
from augmentations import OURS, POLICIES, Call, contenders
from rich.console import Console
from rich.table import Table

from jaxaccel import augment, models, runtime
from jaxaccel.modules import as_model
from jaxaccel.step import Training
from jaxaccel.tasks import ImageClassification

RIVALS = ("dm_pix", "augmax")


def measured(
    calls: dict[str, Call], seconds: float, rounds: int, budget: float
) -> dict[str, dict[str, float]]:
    """Seconds a call of each; they take turns, another one first each time."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, start = list(calls), time.perf_counter()
    for call in calls.values():
        call()  # compiles
    for round_number in range(rounds):
        if round_number > 2 and time.perf_counter() - start > budget:
            break
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            begin, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - begin < seconds:
                calls[name]()
                count += 1
            times[name].append((time.perf_counter() - begin) / count)
    return {
        name: {"median_ms": 1e3 * statistics.median(t), "min_ms": 1e3 * min(t), "max_ms": 1e3 * max(t)}
        for name, t in times.items()
    }


def training_shares(seconds: float, rounds: int, budget: float, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds of a training step with and without augmentation, and its share."""
    cells = []
    networks = [("resnet20", 32, 128, 10, "CIFAR"), ("resnet50", 224, 16, 1000, "Inception")]
    for network, size, batch, classes, policy in networks[: 1 if quick else 2]:
        calls = {
            name: _step(network, size, batch, classes, augmentation)
            for name, augmentation in (("none", augment.chain()), (policy, POLICIES[policy]))
        }
        rows = measured(calls, seconds, rounds, budget)
        share = 1 - rows["none"]["median_ms"] / rows[policy]["median_ms"]
        cells.append({"network": network, "size": size, "batch_size": batch, "steps": rows, "share": share})
    return cells


def _step(network: str, size: int, batch: int, classes: int, augmentation: augment.Augmentation) -> Call:
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8),
        "label": rng.integers(0, classes, batch).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "mask": np.ones(batch, np.float32),
    }
    task, schedule = ImageClassification(), optax.constant_schedule(1e-3)
    factory = partial(getattr(models, network), classes=classes)
    facts = {"classes": classes, "channels": 3, "image_size": size}
    model = as_model(factory, facts, jax.eval_shape(task.inputs, data))
    training = Training(model, task, optax.sgd(schedule), schedule, augmentation)
    state = [jax.jit(training.init)()]
    step, ready = jax.jit(training.step, donate_argnums=0), jax.device_put(data)

    def call() -> Any:
        state[0], metrics = step(state[0], ready)
        return jax.block_until_ready(metrics)

    return call


def table(cells: list[dict[str, Any]], size: int, batch: int) -> Table:
    """Images a second, and how many times as fast as each rival."""
    shown = Table(title=f"{size}x{size}, batch {batch}: images a second")
    names = ["jaxaccel", "jaxaccel, uint8", *RIVALS, "Pillow, one core"]
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
    """How many times as fast as the faster rival each augmentation is."""
    compared = [cell for cell in cells if cell["times_as_fast_as"]]
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
    axes.set(
        xscale="log", xlabel="times as fast as the faster of dm_pix and augmax", ylim=(len(names) - 0.5, -0.5)
    )
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
    add("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    add("--seconds", type=float, default=0.05, help="of a turn (default: 0.05)")
    add("--budget", type=float, default=1.0, help="seconds of rounds beyond the third (default: 1)")
    add("--no-training", action="store_true", help="leave the training steps out")
    add("--quick", action="store_true", help="only shows that all works")
    add(
        "--out",
        type=Path,
        default=record.RESULTS,
        help="directory of JSON and plot (default: benchmarks/results)",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.size, options.batch, options.rounds, options.seconds = [32], [32], 1, 0.0
    runtime.keep_freed_memory()
    where, console = record.machine(), Console(width=140)
    cells: list[dict[str, Any]] = []
    for size in options.size:
        for batch in options.batch:
            for name in options.only or OURS:
                calls = dict(contenders(name, size, batch))
                if size * batch >= 224 * 256 and not ({*RIVALS} & {*calls} or name in POLICIES):
                    continue  # large batches of large images only where there is something to compare with
                rows = measured(calls, options.seconds, options.rounds, options.budget)
                for row in rows.values():
                    row["images_per_second"] = 1e3 * batch / row["median_ms"]
                ratios = {
                    r: rows[r]["median_ms"] / rows["jaxaccel"]["median_ms"] for r in RIVALS if r in rows
                }
                cells.append(
                    {"augmentation": name, "size": size, "batch_size": batch, "contenders": rows,
                     "times_as_fast_as": ratios}
                )  # fmt: skip
            console.print(table(cells, size, batch))
    shares = [] if options.no_training else training_shares(0.5, options.rounds, 60, options.quick)
    for cell in shares:
        console.print(
            f"{cell['network']} at {cell['size']}x{cell['size']}, batch {cell['batch_size']}: "
            + ", ".join(f"{name} {row['median_ms']:.1f} ms" for name, row in cell["steps"].items())
            + f": {cell['share']:.1%} of a step"
        )
    file = record.path("augment", where)
    file = options.out / file.name
    record.write(file, {"machine": where, "cells": cells, "training": shares})
    plot(cells, file.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
