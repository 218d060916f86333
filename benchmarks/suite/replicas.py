"""Times several runs as one program, against the same runs one after another.

    python -m benchmarks replicas                                     # eight seeds of digits and of mnist
    python -m benchmarks replicas --whole 1 --downloads DIR           # and whole commands; DIR has MNIST

A step of all replicas: as separate calls; as one program unrolled, on one device and on a device a core (what the
trainer does on a CPU); and as one program under `jax.vmap` (what it does on accelerators). --whole times whole
commands in fresh processes with an empty compile cache: one with --replicas, against one a seed.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, choose_names, read_count, read_number, time_by
from benchmarks.peers.serve import time_steps
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_span
from jaxaccel import load_recipe
from jaxaccel.core import runtime
from jaxaccel.core.platform import platform_of
from jaxaccel.core.timing import time_in_turns
from jaxaccel.data.order import Phase
from jaxaccel.distributed import MeshShape, make_mesh, replicated
from jaxaccel.models.adapter import as_model
from jaxaccel.training import run_plan
from jaxaccel.training.build import build_trainer
from jaxaccel.training.fused_steps import fuse_steps
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas
from jaxaccel.training.run_plan import PhasePlan

SIZES = {"digits": (8, 1347), "mnist": (28, 60_000), "fashion_mnist": (28, 60_000)}
"""Height and width, and examples."""


STEPS = 1000
"""Steps of the run that is imagined."""
ALONE = "one after another"


class Problem:
    """A recipe on random data of its size."""

    def __init__(self, name: str) -> None:
        self.recipe: Recipe = load_recipe(name)
        self.size, self.examples = SIZES[name]
        rng = np.random.default_rng(0)
        shape = self.examples, self.size, self.size, 1
        self.arrays = {
            "image": jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8)),
            "label": jnp.asarray(rng.integers(0, 10, self.examples, dtype=np.int32)),
        }
        facts = {"classes": 10, "channels": 1, "image_size": self.size}
        image = {"image": self.batch_shape()["image"]}
        self._model = as_model(self.recipe.model, facts, jax.eval_shape(self.recipe.task.inputs, image))

    def make_training(self, recipe: Recipe, mesh: Mesh) -> Any:
        """Makes the training of a recipe on this problem's model."""
        return build_trainer(recipe, self._model, [STEPS], mesh)

    def batch_shape(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Makes the shapes of a batch."""
        batch_size = self.recipe.chosen_batch_size
        rows = {"label": jnp.int32, "index": jnp.int32, "epoch": jnp.int32, "mask": jnp.float32}
        image = jax.ShapeDtypeStruct((batch_size, self.size, self.size, 1), jnp.uint8)
        return {
            "image": image,
            **{name: jax.ShapeDtypeStruct((batch_size,), dtype) for name, dtype in rows.items()},
        }


class Program:
    """As many steps as the trainer fuses into a call, compiled; the state stays between calls."""

    def __init__(
        self, problem: Problem, training: Any, mesh: Mesh, fused: int = 0, replicas: int = 1
    ) -> None:
        """Fuses `fused` steps, by default as many as the trainer does; one of `replicas` steps each of them."""
        shape = jax.eval_shape(training.init)
        flops = run_plan.count_step_flops(training.step, shape, training.batch_shape(problem.batch_shape()))
        self.fused = fused or run_plan.choose_steps_per_call(0, flops, STEPS, STEPS, platform_of(mesh))
        self.steps = replicas * self.fused
        """Steps of single replicas in a call."""
        phase = Phase(0, self.fused, 0, problem.recipe.chosen_batch_size)
        order = training.order(PhasePlan(problem.examples, (phase,)).order)
        items = [order(step) for step in range(self.fused)]
        self._fed = {key: np.stack([item[key] for item in items]) for key in items[0]}
        shardings = training.sharding(shape, mesh)
        self._held = jax.device_put(problem.arrays, replicated(mesh))
        self._state = jax.jit(training.init, out_shardings=shardings)()
        start = time.perf_counter()
        call = jax.jit(
            fuse_steps(training), donate_argnums=0, out_shardings=(shardings, training.reported(mesh))
        )
        lowered = call.lower(self._state, self._held, self._fed)
        self._call = lowered.compile(training.compiler_options(flops, platform_of(mesh)))
        self.compile_seconds = time.perf_counter() - start

    def advance(self, calls: int) -> None:
        """Makes some calls and waits for the last."""
        metrics: Any = None
        for _ in range(calls):
            self._state, metrics = self._call(self._state, self._held, self._fed)
        jax.block_until_ready(metrics)

    def run(self, count: int) -> float:
        """Times steps of single replicas, in seconds each, over `count` of them at least."""
        return time_steps(self.advance, -(-count // self.steps)) / self.steps


def make_programs(name: str, replicas: int, fused: int = 0) -> dict[str, Program]:
    """Makes what steps all replicas, by variant; a call makes `fused` steps, by default as many as the trainer's."""
    problem = Problem(name)
    one, all_devices = make_mesh(MeshShape(data=1)), make_mesh(MeshShape())
    together = problem.make_training(dataclasses.replace(problem.recipe, replicas=replicas), one)
    assert isinstance(together, Replicas)
    side_by_side = dataclasses.replace(together, unrolled=True)
    unrolled = Program(problem, side_by_side, one, fused, replicas)
    mapped = dataclasses.replace(together, unrolled=False)
    # One state instead of eight: the same work, and the same program, with the forms that one device has.
    by_itself = dataclasses.replace(problem.recipe, sweep={"seed": (problem.recipe.seed,)})
    found = {
        ALONE: Program(problem, problem.make_training(by_itself, one), one, fused),
        "unrolled": unrolled,
        "vmap": Program(problem, mapped, one, unrolled.fused, replicas),
    }
    if all_devices.size > 1:
        divided = dataclasses.replace(side_by_side, mesh=all_devices)
        program = Program(problem, divided, all_devices, unrolled.fused, replicas)
        found[f"unrolled, {all_devices.size} devices"] = program
    return found


def divide_processor(options: Options) -> None:
    """Makes devices of the cores, as the trainer does for replicas."""
    runtime.divide_cpu(options.replicas)


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each recipe."""
    for name in options.recipes:
        cell = measure_cell(name, options)
        if options.whole:
            digits = name == "digits"
            epochs, downloads = options.whole * (10 if digits else 1), None if digits else options.downloads
            cell["whole"] = time_commands(name, options.replicas, epochs, downloads)
        yield cell


def measure_cell(name: str, options: Options) -> Cell:
    """Measures milliseconds a step of one replica."""
    programs = make_programs(name, options.replicas, 1 if options.quick else 0)
    turns = {label: program.run for label, program in programs.items()}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = [
        {"name": label, "rounds": len(found), **summarize_times(found),
         "times_as_fast": times.gain(label, ALONE).ratio, "compile_seconds": programs[label].compile_seconds}
        for label, found in times.rounds.items()
    ]  # fmt: skip
    return {"recipe": name, "replicas": options.replicas, "variants": rows}


def time_commands(name: str, replicas: int, epochs: float, downloads: Path | None) -> dict[str, Any]:
    """Times whole commands, the compile cache empty before either of the two ways."""
    found: dict[str, Any] = {"recipe": name, "replicas": replicas, "epochs": epochs}
    with tempfile.TemporaryDirectory() as place:
        data = str(Path(place) / "data")
        words = ["--epochs", str(epochs), "--eval-every", str(epochs), "--data.dir", data]
        words += ["--data.downloads", str(downloads)] if downloads else []
        time_command(name, [*words, "--run", f"{place}/prepare", "--epochs", "0.02"], f"{place}/other-cache")
        found["at_once_seconds"] = time_command(
            name, [*words, "--run", f"{place}/r", "--replicas", str(replicas)], f"{place}/cache-1"
        )
        found["each_seconds"] = [
            time_command(name, [*words, "--run", f"{place}/{i}", "--seed", str(i)], f"{place}/cache-2")
            for i in range(replicas)
        ]
    found["times_as_fast"] = sum(found["each_seconds"]) / found["at_once_seconds"]
    return found


def time_command(name: str, words: Sequence[str], cache: str) -> float:
    """Times one command from start to end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "jaxaccel.train", name, *words], check=True, stdout=subprocess.DEVNULL,
        env=os.environ | {"JAXACCEL_CACHE": cache},
    )  # fmt: skip
    return time.perf_counter() - start


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a variant, and one for whole commands."""
    headings = ["recipe", "variant", "replicas", "ms a replica's step", "times as fast", "compile s"]
    rows = []
    for cell in cells:
        for row in cell["variants"]:
            ratio, compiled = format_ratio(row["times_as_fast"]), f"{row['compile_seconds']:.1f}"
            rows.append(
                [cell["recipe"], row["name"], str(cell["replicas"]), format_span(row), ratio, compiled]
            )
    gains = {
        f"{cell['recipe']}, {row['name']}": row["times_as_fast"]
        for cell in cells
        for row in cell["variants"]
        if row["name"] != ALONE
    }
    notes = [compare_with(ALONE.capitalize(), gains)]
    tables = [Table("A step of replicas at once", headings, rows, words=2, notes=notes)]
    if whole := [cell["whole"] for cell in cells if "whole" in cell]:
        tables.append(tabulate_commands(whole))
    return tables


def tabulate_commands(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Makes one line a recipe: seconds of whole commands."""
    headings = [
        "recipe",
        "epochs",
        "replicas",
        "a command a seed, s",
        "one with --replicas, s",
        "times as fast",
    ]
    rows = [
        [run["recipe"], f"{run['epochs']:g}", str(run["replicas"]), f"{sum(run['each_seconds']):.0f}",
         f"{run['at_once_seconds']:.0f}", format_ratio(run["times_as_fast"])]
        for run in runs
    ]  # fmt: skip
    return Table("Whole commands", headings, rows)


BENCHMARK = Benchmark(
    measure, tabulate, ("recipe", "replicas"), prepare=divide_processor,
    options=(
        choose_names("recipes", SIZES, "Recipes.", ("digits", "mnist")),
        Option("replicas", "Runs at once.", 8, 2, read_count, metavar="N"),
        *time_by(7, 1.0),
        Option("whole", "Whole commands of so many epochs as well.", 0.0, type=read_number, metavar="EPOCHS"),
        Option("downloads", "Directory with the original files of MNIST, for --whole.", type=Path, metavar="DIR"),
    ),
)  # fmt: skip
