"""What `--optimizer.freeze` saves: milliseconds a step, memory of a step, and optimizer state.

    python benchmarks/freezing.py [--quick] [--networks resnet20 vit] [--batch 64]

Variants take turns, round by round: the trainer's step with parameters frozen as it freezes them, and as
`optax.multi_transform` with `optax.set_to_zero` does; and both in a bare step. README.md says what the columns mean.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import record
from augment_steps import images
from rich.table import Table
from turns import Turn, measured, ratio, span, spread, timed

from jaxaccel import models
from jaxaccel.core import runtime
from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.models.adapter import Model, as_model
from jaxaccel.optim import Optimizer
from jaxaccel.optim.freeze import frozen
from jaxaccel.tasks.task import Batch
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.step import Training, TrainState
from jaxaccel.training.sweep import training_of

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Network:
    """What is trained, and how much of it stays."""

    factory: Callable[..., Any]
    image_size: int
    optimizer: Optimizer
    parts: Mapping[str, tuple[str, ...]]
    """Patterns of frozen parameters, by what they are."""


SGD = Optimizer("sgd", 0.1, {"momentum": 0.9}, weight_decay=1e-4)
ADAMW = Optimizer("adamw", 1e-3, weight_decay=0.05)
CIFAR = {"stem, first stage": ("stem/**", "stages/0/**"), "all but the head": ("stem/**", "stages/**")}
EMBEDDING = ("embed/**", "class_token", "positions")
VIT = {
    "embedding, first half": (*EMBEDDING, "blocks/{0,1,2}/**"),
    "all but the head": (*EMBEDDING, "blocks/**", "norm/**"),
}
NETWORKS = {
    "resnet20": Network(models.resnet20, 32, SGD, CIFAR),
    "vit": Network(
        partial(models.VisionTransformer, width=192, depth=6, heads=3, patch_size=4), 32, ADAMW, VIT
    ),
}
SMALL = partial(models.ConvNet, widths=(4,), hidden=8)
QUICK = {"small": Network(SMALL, 8, SGD, {"all but the head": ("stages/**", "hidden*/**")})}


class Program:
    """A training step, compiled; its state stays between calls."""

    def __init__(self, training: Training, bare: bool, batch: Batch) -> None:
        self._state, self._batch = jax.jit(training.init)(), batch
        self._start = jax.tree.map(np.array, self._state.params)
        step = partial(bare_step, training) if bare else training.step
        lowered = jax.jit(training.lowered(step), donate_argnums=0).lower(self._state, batch)
        self._step = lowered.compile()
        self.peak_bytes = runtime.peak_bytes(self._step)
        shapes = jax.tree.leaves(jax.eval_shape(training.init).opt_state)
        self.optimizer_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)

    def turn(self) -> Turn:
        """Turns of steps that are waited for."""

        def call() -> Any:
            self._state, metrics = self._step(self._state, self._batch)
            return jax.block_until_ready(metrics)

        return timed(call)

    def moved(self) -> PyTree:
        """True for each parameter that is no longer what it was."""
        return jax.tree.map(lambda now, start: bool((now != start).any()), self._state.params, self._start)


def bare_step(training: Training, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
    """Gradients and the update: no norm of the gradient, no metrics, no look at what is finite."""

    def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
        inputs = training.task.inputs(batch)
        outputs, new = training.model.apply(
            params, state.model_state, *inputs, key=jax.random.key(0), train=True
        )
        return training.task.loss(outputs, batch)[0], new

    (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = training.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, model_state=model_state, opt_state=opt_state), value


def frozen_by(network: Network, model: Model, where: tuple[str, ...], batch_size: int) -> Training:
    """As the trainer makes it of a recipe."""
    optimizer = dataclasses.replace(network.optimizer, freeze=where)
    recipe = Recipe("freezing", network.factory, optimizer=optimizer, batch_size=batch_size)
    training = training_of(recipe, model, [1000], make_mesh(MeshShape(data=1)))
    assert isinstance(training, Training)
    return training


def held_by_optax(training: Training, where: tuple[str, ...]) -> Training:
    """The same step, whose optimizer leaves out what `where` selects."""

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda stop: "held" if stop else "trained", frozen(params, where))

    parts: dict[Any, optax.GradientTransformation] = {"trained": training.tx, "held": optax.set_to_zero()}
    return dataclasses.replace(training, tx=optax.multi_transform(parts, labels))


def cell(name: str, network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """All variants of one network."""
    batch = images(network.image_size, options.batch, 10)
    facts = {"classes": 10, "channels": 3, "image_size": network.image_size}
    shape = jax.ShapeDtypeStruct((options.batch, network.image_size, network.image_size, 3), np.float32)
    model = as_model(network.factory, facts, (shape,))
    whole = frozen_by(network, model, (), options.batch)
    trainings = {("nothing", "-"): whole}
    for part, where in network.parts.items():
        trainings[part, "freeze"] = frozen_by(network, model, where, options.batch)
        trainings[part, "multi_transform"] = held_by_optax(whole, where)
    programs = {
        (part, way, step): Program(training, step == "bare", batch)
        for (part, way), training in trainings.items()
        for step in ("trainer's", "bare")
    }
    turns = {", ".join(key): program.turn() for key, program in programs.items()}
    times = measured(turns, options.seconds, options.rounds, options.budget)
    rows = []
    for (part, way, step), program in programs.items():
        check(f"{name}, {part}, {way}, {step}", program, network.parts.get(part, ()))
        mine, base = times[f"{part}, {way}, {step}"], times[f"nothing, -, {step}"]
        rows.append(
            {"frozen": part, "way": way, "step": step, **spread(mine, "_ms"), "over_nothing": ratio(mine, base),
             "peak_bytes": program.peak_bytes, "optimizer_bytes": program.optimizer_bytes}
        )  # fmt: skip
    return {
        "network": name,
        "batch_size": options.batch,
        "rounds": len(next(iter(times.values()))),
        "variants": rows,
    }


def check(name: str, program: Program, where: tuple[str, ...]) -> None:
    """Ends the benchmark where another set of parameters moved than that which was to."""
    moved = program.moved()
    held = frozen(moved, where) if where else jax.tree.map(lambda _: False, moved)
    if moved != jax.tree.map(lambda stop: not stop, held):
        sys.exit(f"{name}: what moved is not what is trained")


def table(cells: Sequence[dict[str, Any]], where: Mapping[str, Any]) -> Table:
    """One line a variant; `× nothing` below 1 is faster than the same step with nothing frozen."""
    shown = Table(title=f"Frozen parameters, {where['device_kind']} ({where['cpu']}, {where['cores']} cores)")
    for heading in ("network", "frozen", "way", "step"):
        shown.add_column(heading)
    for heading in ("ms (min–max)", "× nothing", "peak MB", "optimizer MB"):
        shown.add_column(heading, justify="right")
    for entry in cells:
        for row in entry["variants"]:
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
            shown.add_row(
                f"{entry['network']}, {entry['batch_size']}", row["frozen"], row["way"], row["step"], span(row),
                f"{row['over_nothing']:.2f}", peak, f"{row['optimizer_bytes'] / 1e6:.3g}",
            )  # fmt: skip
        shown.add_section()
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="default: all")
    add("--batch", type=int, default=64, help="images (default: 64)")
    add("--rounds", type=int, default=11, help="turns of each variant (default: 11)")
    add("--seconds", type=float, default=0.5, help="about how long one turn takes (default: 0.5)")
    add("--budget", type=float, default=150, help="seconds for the rounds of one network (default: 150)")
    add("--quick", action="store_true", help="only shows that all works")
    add("--out", type=Path, default=record.RESULTS, help="of the JSON (default: benchmarks/results)")
    options = parser.parse_args(argv)
    if options.quick:
        options.batch, options.rounds, options.seconds = 4, 1, 0.0
    runtime.keep_freed_memory()
    where, cells = record.machine(), []
    file = options.out / record.path("freezing", where).name
    for name, network in (QUICK if options.quick else {n: NETWORKS[n] for n in options.networks}).items():
        cells.append(cell(name, network, options))
        record.write(file, {"machine": where, "quick": options.quick, "cells": cells})
    record.show(table(cells, where), file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
