"""The steps of a route: each takes a stage and gives one that is smaller, or that has learned.

A step is a frozen dataclass of options, which the command line shows as ``--NAME.OPTION``.
"""

import abc
import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax

from jaxaccel.arrays import CodebookArray
from jaxaccel.compress import (
    low_rank,
    masked,
    multiply_adds,
    prune,
    quantize,
    remove_channels,
    share,
)
from jaxaccel.errors import UserError
from jaxaccel.flags import Call
from jaxaccel.initial import start
from jaxaccel.interpret import is_compressed
from jaxaccel.optim import Sparse
from jaxaccel.route.stage import Setting, Stage, inference, trained, zeros
from jaxaccel.route.tuning import fine_tuned, mean_gradient
from jaxaccel.teacher import Distill
from jaxaccel.transforms import Calibration, calibrate, fold, input_covariances, input_norms, int8
from jaxaccel.trees import with_leaves

PyTree = Any


class Step(abc.ABC):
    """Base of all steps."""

    same_function: ClassVar[bool] = True
    """Whether the model computes afterwards as before, with other variables: those are all there is to restore."""

    @property
    def prunes(self) -> tuple[str, ...]:
        """Which weights it sets to zero, as patterns of paths."""
        return ()

    @abc.abstractmethod
    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage after this step, which is called `name` in its route.

        Raises:
          UserError: an option has no meaning for this model.
        """


@dataclasses.dataclass(frozen=True)
class RemoveChannels(Step):
    """Takes out whole channels: a thinner dense model. One of flops, parameters and latency says how far."""

    flops: float | None = 0.5
    """Share of the multiply-adds that shall be left."""
    parameters: float | None = None
    """Or of the parameters."""
    latency: float | None = None
    """Or of the time of a batch on this device, measured."""
    scope: Literal["global", "layer"] = "global"
    """The least important channels wherever they are, or the same share everywhere."""
    criterion: Literal["magnitude", "taylor"] = "magnitude"
    """Of importance: sizes of the weights, or what the loss changes to first order."""
    where: tuple[str, ...] = ("**",)
    """Axes of which one belongs to a path like this."""
    least: float = 0.1
    """Share of the channels that stays everywhere."""
    multiple: int = 1
    """Channels are left in multiples of this, where there were; 8 and more suit vector units."""
    examples: int = 512
    """taylor: training examples for the gradient."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with fewer channels."""
        grads = None
        if self.criterion == "taylor":
            nothing = jax.tree.map(lambda _: None, stage.variables["model_state"])
            grads = {"params": mean_gradient(stage, setting, self.examples), "model_state": nothing}
        (inputs,) = setting.examples(setting.batch)
        removed = remove_channels(
            stage.call, stage.variables, *inputs, flops=self.flops, parameters=self.parameters, latency=self.latency,
            scope=self.scope, criterion=self.criterion, where=self.where, grads=grads, least=self.least,
            multiple=self.multiple,
        )  # fmt: skip
        return dataclasses.replace(stage, variables=removed.params, file=None)


@dataclasses.dataclass(frozen=True)
class Prune(Step):
    """Sets the least important weights to zero: fewer bytes to pack, no fewer operations."""

    sparsity: float | None = 0.8
    """Share of the weights to remove; None for an n:m pattern, which decides it."""
    pattern: str = "unstructured"
    """unstructured, n:m (2:4), block or block:RxC."""
    scope: Literal["layer", "global", "erk"] = "layer"
    """Whether each layer loses that share, or all together, or each by its shape."""
    criterion: Literal["magnitude", "taylor", "wanda"] = "magnitude"
    """Of importance: size; what the loss changes to first order; size times the norm of the inputs."""
    where: tuple[str, ...] = ("**/kernel",)
    """Which weights, by path."""
    examples: int = 512
    """taylor, wanda: training examples to look at."""

    @property
    def prunes(self) -> tuple[str, ...]:
        """As `where` says."""
        return self.where

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with zeros."""
        params = stage.variables["params"]
        grads = mean_gradient(stage, setting, self.examples) if self.criterion == "taylor" else None
        norms = None
        if self.criterion == "wanda":
            norms = input_norms(stage.of_params(), params, setting.examples(self.examples))
        masks = prune(
            params,
            self.sparsity,
            self.pattern,
            self.scope,
            self.criterion,
            self.where,
            grads=grads,
            norms=norms,
        )
        return stage.with_params(masked(params, masks))


@dataclasses.dataclass(frozen=True)
class LowRank(Step):
    """Truncates singular values: each weight becomes two thinner ones. One of rank, energy and flops says how far."""

    flops: float | None = 0.5
    """Share of the selected weights' multiply-adds that shall be left, spread so that least is lost."""
    energy: float | None = None
    """Or the share of the squares of each weight's singular values to keep."""
    rank: int | None = None
    """Or the rank of all."""
    where: tuple[str, ...] = ("**/kernel",)
    """Which weights, by path."""
    form: Literal["auto", "channel", "spatial"] = "auto"
    """Of convolutions: all inputs to all outputs, rows to columns, or what keeps more."""
    examples: int = 0
    """Above 0: training examples on whose activations the error is made least; convolutions then take channel."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with low-rank weights."""
        params, f = stage.variables["params"], stage.of_params()
        found = input_covariances(f, params, setting.examples(self.examples)) if self.examples else None
        work = multiply_adds(f, params, *setting.inputs(1)) if self.flops is not None else None
        thin = low_rank(
            params, rank=self.rank, energy=self.energy, flops=self.flops, where=self.where, form=self.form, work=work,
            covariances=found,
        )  # fmt: skip
        return stage.with_params(thin)


@dataclasses.dataclass(frozen=True)
class Share(Step):
    """Lets the weights of each layer share few values, the centres of k-means."""

    bits: int = 4
    """2 ** bits values a layer."""
    where: tuple[str, ...] = ("**/kernel",)
    """Which weights, by path."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with codebooks."""
        return stage.with_params(share(stage.variables["params"], self.bits, self.where))


@dataclasses.dataclass(frozen=True)
class FineTune(Step):
    """Trains on, as the model was trained but for what stands here. What was pruned stays zero."""

    epochs: float = 1.0
    """Passes over the training split."""
    rate: float = 0.1
    """Highest learning rate, as a share of the recipe's; it falls by a cosine."""
    warmup: float = 0.0
    """Share of the steps in which it rises first."""
    split: str = ""
    """Of the training data, train[:10000] for instance; empty for the whole."""
    sparse: Sparse = Sparse()
    """Pruning while training; without any, weights stay zero that an earlier step pruned."""
    teacher: str = ""
    """Who is learned from besides: origin, or another run or file of weights; empty for nobody."""
    teacher_model: Call | None = None
    """What makes the teacher's model where that is a file; by default that of the training recipe. A run knows its own,
    as does the origin."""
    temperature: float = 4.0
    """Of the teacher's soft targets."""
    soft: float = 0.9
    """Weight of the soft targets in the loss; the labels have the rest."""
    precision: Literal["", "float32", "bfloat16", "float16", "int8-qat"] = ""
    """Of the training; empty for that of the recipe."""

    def __post_init__(self) -> None:
        """Checks what is asked of a teacher."""
        if self.teacher == "origin" and self.teacher_model:
            raise UserError("teacher_model is for a file: the origin knows its model")
        try:
            teacher = Path(self.teacher) if self.teacher else None
            Distill(teacher, self.teacher_model, self.temperature, self.soft)
        except UserError as error:
            own = str(error).replace("distill.model", "teacher_model").replace("--distill.", "")
            raise UserError(own.replace("distill.", "")) from error

    @property
    def prunes(self) -> tuple[str, ...]:
        """As `sparse` says."""
        return (self.sparse.where,) if self.sparse.on else ()

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with what was learned."""
        there = zeros(stage.variables["params"], stage.pruned)
        keep = there and not self.sparse.on
        fixed = Sparse(method="fixed", where=f"{{{','.join(there)}}}")
        return fine_tuned(stage, setting, name, self, fixed if keep else self.sparse)


@dataclasses.dataclass(frozen=True)
class Student(Step):
    """Puts another, smaller model in place, which is to learn from the first one: ``--fine-tune.teacher origin``."""

    same_function: ClassVar[bool] = False
    model: Call | None = None
    """What makes it: resnet20, or my_package.models.MyNet(width=16)."""
    init_from: Path | None = None
    """A run or a file with weights to begin with; without, it begins with random ones."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The student's stage."""
        if self.model is None:
            raise UserError(f"name the student's model: --{name}.model resnet20, for instance")
        model = setting.model(self.model)
        params, state = jax.jit(model.init)(jax.random.key(setting.training.seed))
        variables = {"params": params, "model_state": state}
        if self.init_from is None:
            return Stage(self.model, variables, inference(model))
        found = start(self.init_from, model, setting.inputs(setting.batch), setting.task.metric)
        return trained(self.model, with_leaves(variables, found.weights), model)


@dataclasses.dataclass(frozen=True)
class Fold(Step):
    """Computes what the parameters alone decide beforehand: BatchNorm goes into the weights. No training after it."""

    same_function: ClassVar[bool] = False

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage of the folded function."""
        call, variables = fold(stage.call, stage.variables, *setting.inputs(1))
        return dataclasses.replace(stage, call=call, variables=variables, trainable=False, file=None)


@dataclasses.dataclass(frozen=True)
class Quantize(Step):
    """Rounds weights and activations to integers. No training after it."""

    same_function: ClassVar[bool] = False
    bits: int = 8
    """Of the weights: 8, or 4, whose products are computed in floating point."""
    activations: Literal["static", "dynamic", "none"] = "static"
    """Rounded by ranges seen beforehand, by those of each batch, or not at all."""
    method: Literal["mse", "absmax", "percentile", "entropy"] = "mse"
    """static: how a range follows from what was seen."""
    examples: int = 512
    """static: training examples to see."""
    where: tuple[str, ...] = ("**/{kernel,embedding}",)
    """Which weights, by path."""
    lowering: Literal["auto", "int8"] = "auto"
    """auto leaves in floating point what is slower as integers on this device."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage of integers."""
        if _shared(stage.variables):
            raise UserError(
                f"{name}: weights that share the values of a codebook are not quantised: leave out this step, or "
                "the one that shares"
            )
        static = self.activations == "static" and self.bits == 8
        variables = quantize(stage.variables, self.where, bits=self.bits)
        ranges = self._ranges(stage, setting, name) if static else None

        def accelerated(f: Any) -> Any:
            activations = self.activations if self.bits == 8 else "none"
            return int8(f, activations=activations, calibration=ranges, lowering=self.lowering)

        return dataclasses.replace(
            stage, variables=variables, accelerated=accelerated, trainable=False, file=None
        )

    def _ranges(self, stage: Stage, setting: Setting, name: str) -> Calibration:
        """Those of an earlier attempt where there are any."""
        file = setting.directory / f"{name}-ranges.json"
        if not file.exists():
            calibrate(stage.call, stage.variables, setting.examples(self.examples), method=self.method).save(
                file
            )
        return Calibration.load(file)


def _shared(variables: PyTree) -> bool:
    leaves = jax.tree.leaves(variables, is_leaf=is_compressed)
    return any(isinstance(x, CodebookArray) for x in leaves)
