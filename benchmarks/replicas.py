"""Several runs at once as one program, against the same runs one after another.

    python benchmarks/replicas.py [--recipes digits mnist] [--replicas 8] [--whole EPOCHS [--downloads DIR]]

Times one step of all replicas: as separate calls, as one program unrolled (what jaxaccel does on a CPU, of which each
core is a device), and as one program under `jax.vmap` (what it does on an accelerator). --whole also times whole
commands, from typing to the result, each in a fresh process: one command with --replicas, against one command a seed.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from jax.sharding import Mesh
from rich.table import Table

from jaxaccel import load_recipe
from jaxaccel.core import runtime
from jaxaccel.data.order import Phase
from jaxaccel.distributed import MeshShape, make_mesh, replicated
from jaxaccel.models.adapter import as_model
from jaxaccel.training import pacing
from jaxaccel.training.fuse import several
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas
from jaxaccel.training.sweep import training_of

SIZES = {"digits": (8, 1347), "mnist": (28, 60_000), "fashion_mnist": (28, 60_000)}
"""Height and width, and examples."""


def turns(name: str, replicas: int) -> dict[str, Callable[[], Any]]:
    """What does as many steps of every replica as the trainer fuses into a call, by the name of the variant."""
    recipe = load_recipe(name)
    size, examples = SIZES[name]
    rng = np.random.default_rng(0)
    arrays = {
        "image": jnp.asarray(rng.integers(0, 256, (examples, size, size, 1), dtype=np.uint8)),
        "label": jnp.asarray(rng.integers(0, 10, examples, dtype=np.int32)),
    }
    element = {"image": jax.ShapeDtypeStruct((recipe.batch_size, size, size, 1), jnp.uint8)}
    facts = {"classes": 10, "channels": 1, "image_size": size}
    model = as_model(recipe.model, facts, jax.eval_shape(recipe.task.inputs, element))
    one, all_devices = make_mesh(MeshShape(data=1)), make_mesh(MeshShape())

    def made(recipe: Recipe, mesh: Mesh) -> Any:
        return training_of(recipe, model, [1000], mesh)

    def call(training: Any, mesh: Mesh) -> Callable[[], Any]:
        shapes = training.batch_shape(_batch_shape(recipe.batch_size, size))
        flops = pacing.flops(training.step, jax.eval_shape(training.init), shapes)
        fused = per_call or pacing.steps_per_call(0, flops, 1000, 1000)
        order = training.order(examples, [Phase(0, fused, 0, recipe.batch_size)])
        items = [order(step) for step in range(fused)]
        fed = {key: np.stack([item[key] for item in items]) for key in items[0]}
        shardings = training.sharding(jax.eval_shape(training.init), mesh)
        held = jax.device_put(arrays, replicated(mesh))
        box = [jax.jit(training.init, out_shardings=shardings)()]
        steps: list[jax.stages.Compiled] = []

        def run() -> Any:
            if not steps:  # the first call is the one whose time counts as the compiler's
                step = jax.jit(
                    several(training), donate_argnums=0, out_shardings=(shardings, training.reported(mesh))
                )
                lowered = step.lower(box[0], held, fed)
                steps.append(lowered.compile(training.compiler_options(flops)))
            box[0], metrics = steps[0](box[0], held, fed)
            return metrics.finite

        run.fused = fused  # type: ignore[attr-defined]
        return run

    per_call = 0
    together = made(dataclasses.replace(recipe, replicas=replicas), one)
    assert isinstance(together, Replicas)
    unrolled = call(dataclasses.replace(together, unrolled=True), one)
    per_call = unrolled.fused  # type: ignore[attr-defined]
    vmapped = call(dataclasses.replace(together, unrolled=False), one)
    divided = call(dataclasses.replace(together, unrolled=True, mesh=all_devices), all_devices)
    per_call = 0
    by_itself = dataclasses.replace(
        recipe, sweep={"seed": (recipe.seed,)}
    )  # with the forms that one device has
    alone = call(made(by_itself, one), one)  # one state instead of eight: the same work, and the same program
    rounds = unrolled.fused / alone.fused  # type: ignore[attr-defined]

    def one_after_another() -> Any:
        return [alone() for _ in range(max(1, round(replicas * rounds)))]

    one_after_another.steps = max(1, round(replicas * rounds)) * alone.fused  # type: ignore[attr-defined]
    unrolled.steps = vmapped.steps = divided.steps = replicas * unrolled.fused  # type: ignore[attr-defined]
    found = {"one after another": one_after_another, "unrolled": unrolled, "vmap": vmapped}
    devices = all_devices.size
    return found | ({f"unrolled, {devices} devices": divided} if devices > 1 else {})


def _batch_shape(batch_size: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "image": jax.ShapeDtypeStruct((batch_size, size, size, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "epoch": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }


def timed(name: str, replicas: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Milliseconds a step of one replica: median, least and most over turns that the variants take in rotation."""
    variants = turns(name, replicas)
    compiled, calls = {}, {}
    for label, run in variants.items():
        start = time.perf_counter()
        jax.block_until_ready(run())
        compiled[label] = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(run())
        calls[label] = max(1, round(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {label: [] for label in variants}
    for repeat in range(repeats):
        labels = list(variants)
        for label in labels[repeat % len(labels) :] + labels[: repeat % len(labels)]:
            run = variants[label]
            jax.block_until_ready(run())
            start = time.perf_counter()
            last = None
            for _ in range(calls[label]):
                last = run()
            jax.block_until_ready(last)
            steps = calls[label] * run.steps  # type: ignore[attr-defined]
            times[label].append(1e3 * (time.perf_counter() - start) / steps)
    base = statistics.median(times["one after another"])
    return {
        "recipe": name,
        "replicas": replicas,
        "variants": [
            {
                "name": label, "median_ms": statistics.median(found), "min_ms": min(found), "max_ms": max(found),
                "times_as_fast": base / statistics.median(found), "compile_seconds": compiled[label],
            }
            for label, found in times.items()
        ],
    }  # fmt: skip


def whole(name: str, replicas: int, epochs: float, downloads: Path | None) -> dict[str, Any]:
    """Seconds of whole commands, the compile cache empty before either of the two ways."""
    found: dict[str, Any] = {"recipe": name, "replicas": replicas, "epochs": epochs}
    with tempfile.TemporaryDirectory() as place:
        data = str(Path(place) / "data")
        words = ["--epochs", str(epochs), "--eval-every", str(epochs), "--data.dir", data]
        words += ["--data.downloads", str(downloads)] if downloads else []
        _command(name, [*words, "--run", f"{place}/prepare", "--epochs", "0.02"], f"{place}/other-cache")
        found["at_once_seconds"] = _command(
            name, [*words, "--run", f"{place}/r", "--replicas", str(replicas)], f"{place}/cache-1"
        )
        found["each_seconds"] = [
            _command(name, [*words, "--run", f"{place}/{i}", "--seed", str(i)], f"{place}/cache-2")
            for i in range(replicas)
        ]
    found["times_as_fast"] = sum(found["each_seconds"]) / found["at_once_seconds"]
    return found


def _command(name: str, words: Sequence[str], cache: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "jaxaccel.train", name, *words], check=True, stdout=subprocess.DEVNULL,
        env=os.environ | {"JAXACCEL_CACHE": cache},
    )  # fmt: skip
    return time.perf_counter() - start


def table(cells: Sequence[dict[str, Any]], where: dict[str, Any]) -> Table:
    """One line a variant."""
    shown = Table(title=f"Replicas at once, {where['device_kind']} ({where['cpu']}, {where['cores']} cores)")
    for heading in ("recipe", "variant", "ms a replica's step", "times as fast", "compile s"):
        shown.add_column(heading, justify="left" if heading in ("recipe", "variant") else "right")
    for cell in cells:
        for row in cell["variants"]:
            span = f"{row['median_ms']:.3g} ({row['min_ms']:.3g}–{row['max_ms']:.3g})"
            ratio, compiled = f"{row['times_as_fast']:.2f}", f"{row['compile_seconds']:.1f}"
            shown.add_row(f"{cell['recipe']} × {cell['replicas']}", row["name"], span, ratio, compiled)
        if "whole" in cell:
            run = cell["whole"]
            each = sum(run["each_seconds"])
            shown.add_row("", f"whole commands, {run['epochs']:g} epochs", f"{run['at_once_seconds']:.0f} s for "
                          f"{each:.0f} s", f"{run['times_as_fast']:.2f}", "")  # fmt: skip
        shown.add_section()
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--recipes", nargs="+", choices=list(SIZES), default=["digits", "mnist"])
    add("--replicas", type=int, default=8)
    add("--repeats", type=int, default=7, help="turns of each variant (default: 7)")
    add("--seconds", type=float, default=1.0, help="about how long one turn takes (default: 1)")
    add("--whole", type=float, default=0.0, metavar="EPOCHS", help="whole commands of so many epochs as well")
    add("--downloads", type=Path, help="directory with the original files of MNIST, for --whole")
    add("--out", type=Path, default=record.RESULTS)
    options = parser.parse_args(argv)
    runtime.divide_cpu(options.replicas)
    where = record.machine()
    cells = []
    for name in options.recipes:
        cell = timed(name, options.replicas, options.repeats, options.seconds)
        if options.whole:
            epochs = options.whole * (10 if name == "digits" else 1)
            cell["whole"] = whole(
                name, options.replicas, epochs, None if name == "digits" else options.downloads
            )
        cells.append(cell)
    file = options.out / record.path("replicas", where).name
    record.write(file, {"machine": where, "cells": cells})
    record.show(table(cells, where), file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
