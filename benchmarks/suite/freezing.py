"""Measures what frozen parameters save: milliseconds a step, memory of a step, and optimizer state.

    python -m benchmarks freezing                                     # ResNet-20 with SGD, a Transformer with AdamW

Parameters are frozen as the trainer does (`--optimizer.freeze`), and as `optax.multi_transform` with
`optax.set_to_zero` does; in the trainer's step and in a bare one. It ends where other parameters moved than those
that are trained.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.harness import Benchmark
from benchmarks.options import Mistake, Option, Options, choose_names, read_count, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, format_ratio, format_short, format_span
from benchmarks.trainer import draw_batch
from jaxaccel import models
from jaxaccel.core import runtime
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.models.adapter import Model, as_model
from jaxaccel.optim import Optimizer
from jaxaccel.optim.freeze import mark_frozen
from jaxaccel.tasks.metrics import value_of
from jaxaccel.tasks.task import Batch
from jaxaccel.training.build import build_trainer
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.step import Training, TrainState

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
        step = partial(take_bare_step, training) if bare else training.step
        lowered = jax.jit(training.lowered(step), donate_argnums=0).lower(self._state, batch)
        self._step = lowered.compile()
        self.peak_bytes = runtime.peak_bytes(self._step)
        shapes = jax.tree.leaves(jax.eval_shape(training.init).opt_state)
        self.optimizer_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)

    def advance(self) -> Any:
        """Takes a step."""
        self._state, metrics = self._step(self._state, self._batch)
        return metrics

    def find_moved(self) -> PyTree:
        """Finds which parameters are no longer what they were."""
        return jax.tree.map(lambda now, start: bool((now != start).any()), self._state.params, self._start)


def take_bare_step(training: Training, state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
    """Takes gradients and the update: no norm of the gradient, no metrics, no look at what is finite."""

    def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
        inputs = training.task.inputs(batch)
        outputs, new = training.model.apply(
            params, state.model_state, *inputs, key=jax.random.key(0), train=True
        )
        return value_of(training.task.loss(outputs, batch)[0]), new

    (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = training.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, model_state=model_state, opt_state=opt_state), value


def freeze_by_trainer(network: Network, model: Model, where: tuple[str, ...], batch_size: int) -> Training:
    """Makes the training of a recipe as the trainer does."""
    optimizer = dataclasses.replace(network.optimizer, freeze=where)
    recipe = Recipe("freezing", network.factory, optimizer=optimizer, batch_size=batch_size)
    training = build_trainer(recipe, model, [1000], make_mesh(MeshShape(data=1)))
    assert isinstance(training, Training)
    return training


def freeze_by_optax(training: Training, where: tuple[str, ...]) -> Training:
    """Makes the same step, whose optimizer leaves out what `where` selects."""

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda stop: "held" if stop else "trained", mark_frozen(params, where))

    parts: dict[Any, optax.GradientTransformation] = {"trained": training.tx, "held": optax.set_to_zero()}
    return dataclasses.replace(training, tx=optax.multi_transform(parts, labels))


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each network."""
    networks = QUICK if options.quick else {name: NETWORKS[name] for name in options.networks}
    for name, network in networks.items():
        yield measure_cell(name, network, options)


def measure_cell(name: str, network: Network, options: Options) -> Cell:
    """Measures all variants of one network."""
    programs = make_programs(network, options.batch)
    turns = {", ".join(key): run_repeatedly(program.advance) for key, program in programs.items()}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = []
    for (part, way, step), program in programs.items():
        check_moved(f"{name}, {part}, {way}, {step}", program, network.parts.get(part, ()))
        who = f"{part}, {way}, {step}"
        rows.append(
            {"frozen": part, "way": way, "step": step, **summarize_times(times.rounds[who]),
             "over_nothing": 1 / times.gain(who, f"nothing, -, {step}").ratio,
             "peak_bytes": program.peak_bytes, "optimizer_bytes": program.optimizer_bytes}
        )  # fmt: skip
    rounds = len(next(iter(times.rounds.values())))
    return {"network": name, "batch_size": options.batch, "rounds": rounds, "variants": rows}


def make_programs(network: Network, batch_size: int) -> dict[tuple[str, str, str], Program]:
    """Makes all variants of a network, by what is frozen, the way and the step."""
    batch = draw_batch(network.image_size, batch_size, 10)
    facts = {"classes": 10, "channels": 3, "image_size": network.image_size}
    shape = jax.ShapeDtypeStruct((batch_size, network.image_size, network.image_size, 3), np.float32)
    model = as_model(network.factory, facts, (shape,))
    whole = freeze_by_trainer(network, model, (), batch_size)
    trainings = {("nothing", "-"): whole}
    for part, where in network.parts.items():
        trainings[part, "freeze"] = freeze_by_trainer(network, model, where, batch_size)
        trainings[part, "multi_transform"] = freeze_by_optax(whole, where)
    return {
        (part, way, step): Program(training, step == "bare", batch)
        for (part, way), training in trainings.items()
        for step in ("trainer's", "bare")
    }


def check_moved(name: str, program: Program, where: tuple[str, ...]) -> None:
    """Ends the benchmark where another set of parameters moved than that which was to."""
    moved = program.find_moved()
    held = mark_frozen(moved, where) if where else jax.tree.map(lambda _: False, moved)
    if moved != jax.tree.map(lambda stop: not stop, held):
        raise Mistake(f"{name}: what moved is not what is trained")


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a variant; `× nothing` below 1 is faster than the same step with nothing frozen."""
    headings = ["network", "frozen", "way", "step", "batch", "ms", "× nothing", "peak MB", "optimizer MB"]
    rows = []
    for cell in cells:
        for row in cell["variants"]:
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
            rows.append(
                [cell["network"], row["frozen"], row["way"], row["step"], str(cell["batch_size"]), format_span(row),
                 format_ratio(row["over_nothing"]), peak, format_short(row["optimizer_bytes"] / 1e6)]
            )  # fmt: skip
    return [Table("Training steps with frozen parameters", headings, rows, words=4)]


BENCHMARK = Benchmark(
    measure, tabulate, ("network", "batch_size"),
    options=(
        choose_names("networks", NETWORKS, "Networks."),
        Option("batch", "Images.", 64, 4, read_count, metavar="N"),
        *time_by(11, 0.5, 150),
    ),
)  # fmt: skip
