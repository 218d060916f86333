"""A model on its way, and what the steps may know of the task that it does."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxaccel.core.options import Options
from jaxaccel.core.paths import Where, parameter_path
from jaxaccel.data.source import Source
from jaxaccel.models.adapter import Model, inference
from jaxaccel.tasks import Task
from jaxaccel.tasks.batches import iterate_batches
from jaxaccel.training.facts import Facts
from jaxaccel.training.problem import Problem
from jaxaccel.training.recipe import Recipe
from jaxaccel.transforms import compressed, int8, retarget
from jaxaccel.transforms.calibrate import Calibration
from jaxaccel.transforms.params import trainable
from jaxaccel.transforms.params.select import selects_parameter

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Int8(Options):
    """`ja.int8` with its options, which an export to another format reads."""

    activations: Literal["static", "dynamic", "none"] = "dynamic"
    calibration: Calibration | None = None
    lowering: Literal["auto", "int8"] = "auto"

    def __call__(self, f: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`f` on quantized parameters."""
        return int8(f, activations=self.activations, calibration=self.calibration, lowering=self.lowering)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a model computes with at one point of its pipeline, and how."""

    factory: Any
    """What makes the model, as a recipe names it."""
    variables: PyTree
    """The first argument of `call`: ``{"params": ..., "model_state": ...}`` while it is one that can be trained, with
    compressed leaves from the first step on that makes some."""
    call: Callable[..., PyTree]
    """(dense variables, *inputs) -> outputs, in inference."""
    accelerated: Callable[[Callable[..., PyTree]], Callable[..., PyTree]] = compressed
    """What makes `call` one of `variables`: `ja.transforms.compressed`, or `Int8`."""
    pruned: tuple[str, ...] = ()
    """Which weights were pruned on the way, as patterns of paths: their zeros stay."""
    file: Path | None = None
    """Where `variables` are packed."""

    @property
    def run(self) -> Callable[..., PyTree]:
        """(variables, *inputs) -> outputs, in the forms that this device runs fast; to be compiled."""
        return retarget(self.accelerated(self.call))

    def with_params(self, params: PyTree) -> "Stage":
        """The same model with other parameters."""
        return dataclasses.replace(self, variables=self.variables | {"params": params}, file=None)

    def of_params(self, f: Callable[..., PyTree] | None = None) -> Callable[..., PyTree]:
        """`call`, or `f` of the same arguments, as a function of the parameters alone, the state being what it is."""
        f, rest = f or self.call, {k: v for k, v in self.variables.items() if k != "params"}
        return lambda params, *inputs, **method: f({"params": params, **rest}, *inputs, **method)


def stage_of_trained(factory: Any, variables: PyTree, model: Model) -> Stage:
    """The stage of a model with weights of an earlier training.

    What is zero there in part was pruned; what is wholly so may be a layer that began like that and never trained.
    """
    pruned = tuple(path for path, share in measure_zeros(variables["params"]).items() if 0.01 < share < 1)
    return Stage(factory, variables, inference(model), pruned=pruned)


def measure_zeros(params: PyTree, where: Where = "**") -> dict[str, float]:
    """The share of zeros in each weight that trains and that `where` selects, by path, where there are any.

    Codebooks are left out, which keep their zeros by themselves.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(trainable(params))
    named = [(parameter_path(path), x) for path, x in leaves if x.ndim > 1]
    chosen = {path: x for path, x in named if selects_parameter(where, path)}
    return {path: share for path, x in chosen.items() if (share := float(np.mean(np.asarray(x) == 0)))}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The task, the data and the place of a pipeline."""

    training: Recipe
    """How the model was trained: its task and data are those of all receipts, and fine-tuning goes by it."""
    directory: Path
    batch: int
    """Examples in a batch of evaluation and of the receipts' throughput."""
    trust: bool = False
    """Whether to execute code that runs bring along, also where somebody else wrote it."""
    kept: Facts | None = None
    """What an earlier run kept of the data, which then need not be there."""
    before: Facts | None = None
    """What the run that is compressed kept of the data: what it learned of them is not learned anew."""

    def file(self, number: int, name: str) -> Path:
        """Where the variables after a step are packed."""
        return self.directory / f"{number}-{name}.safetensors"

    @property
    def origin(self) -> Path:
        """Where those are that the pipeline begins with."""
        return self.file(0, "origin")

    @functools.cached_property
    def problem(self) -> Problem:
        """The task and the data, opened once."""
        return Problem(self.training, self.kept, self.before)

    @property
    def task(self) -> Task:
        """What the model does, with the options that follow from the training data."""
        return self.problem.task

    @property
    def train(self) -> Source:
        """The split that was trained on, without what was set aside for validation."""
        return self.problem.splits.train

    @property
    def test(self) -> Source:
        """The split that decides."""
        return self.problem.splits.test or self.problem.splits.evaluation

    @property
    def known(self) -> Facts:
        """What the data say of themselves."""
        return self.problem.facts

    def inputs(self, size: int) -> tuple[PyTree, ...]:
        """Shapes of a batch's inputs to the model."""
        return self.problem.inputs(size)

    def model(self, factory: Any) -> Model:
        """The pure functions of what `factory` makes for this data."""
        return self.problem.model(factory, self.batch)

    def examples(self, count: int) -> list[tuple[PyTree, ...]]:
        """Inputs of the first `count` training examples, in whole batches."""
        size = min(self.batch, count)
        return [
            self.task.inputs(self.task.features(batch))
            for batch in iterate_batches(self.train, self.task, size, count // size * size)
        ]
