"""The steps of a pipeline that make a model smaller or faster; those that learn are in `training_steps`.

The command line shows their options as ``--NAME.OPTION``.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import numpy as np
from annotated_types import Interval

from jaxaccel.compression.stage import Int8, Setting, Stage
from jaxaccel.compression.step import Part, Step, pick_one
from jaxaccel.compression.training_steps import compute_mean_gradient
from jaxaccel.core.arrays import CodebookArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.options import Count, CountOrZero, ShareBelowOne
from jaxaccel.core.paths import flatten_by_path
from jaxaccel.errors import UserError
from jaxaccel.models.bound import Bound, find_methods
from jaxaccel.optim import Sparse
from jaxaccel.transforms import Calibration, calibrate, fold, input_covariances, input_norms
from jaxaccel.transforms.params import (
    count_multiply_adds,
    low_rank,
    masked,
    prune,
    quantize,
    remove_channels,
    share,
)
from jaxaccel.transforms.params.prune import Pattern

PyTree = Any
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RemoveChannels(Step):
    """Takes out whole channels: a thinner dense model. One of flops, parameters and latency says how far."""

    flops: Part | None = None
    """Keep this share of the multiply-adds; 0.5 where none of flops, parameters and latency is given."""
    parameters: Part | None = None
    """Keep this share of the parameters instead."""
    latency: Part | None = None
    """Keep this share of the time of a batch instead, measured on this device."""
    scope: Literal["global", "layer"] = "global"
    """global removes the least important channels wherever they are, layer the same share of each layer."""
    criterion: Literal["magnitude", "taylor"] = "magnitude"
    """magnitude ranks channels by the size of their weights, taylor by how much the loss changes without
    them, to first order."""
    where: tuple[str, ...] = ("**",)
    """Remove only channels that reach a parameter whose path matches one of these patterns."""
    least: ShareBelowOne = 0.1
    """Keep at least this share of the channels of every layer."""
    multiple: Count = 1
    """Leave channels in multiples of this number, where there were; 8 and more suit vector units."""
    examples: Count = 512
    """taylor computes the gradient from this many training examples."""

    def check_values(self) -> None:
        """Checks that there is one budget."""
        assert self.budget

    @property
    def budget(self) -> dict[str, Any]:
        """How much shall be left, and of what."""
        return pick_one(flops=self.flops, parameters=self.parameters, latency=self.latency) or {"flops": 0.5}

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with fewer channels."""
        grads = None
        if self.criterion == "taylor":
            nothing = jax.tree.map(lambda _: None, stage.variables["model_state"])
            grads = {"params": compute_mean_gradient(stage, setting, self.examples), "model_state": nothing}
        (inputs,) = setting.examples(setting.batch)
        removed = remove_channels(
            stage.call, stage.variables, *inputs, scope=self.scope, criterion=self.criterion, where=self.where,
            grads=grads, least=self.least, multiple=self.multiple, **self.budget,
        )  # fmt: skip
        return dataclasses.replace(stage, variables=removed.params, file=None)


@dataclasses.dataclass(frozen=True)
class Prune(Step):
    """Sets the least important weights to zero: fewer bytes to pack, no fewer operations."""

    sparsity: ShareBelowOne | None = None
    """Remove this share of the weights [default: 0.8]; an n:m pattern decides it alone."""
    pattern: str = "unstructured"
    """Remove weights one by one (unstructured), all but n of each m (2:4), or in blocks (block, block:RxC)."""
    scope: Literal["layer", "global", "erk"] = "layer"
    """layer removes that share of each layer, global of all layers together, erk a share of each layer that
    follows from its shape."""
    criterion: Literal["magnitude", "taylor", "wanda"] = "magnitude"
    """magnitude ranks weights by size, taylor by how much the loss changes without them, to first order,
    wanda by size times the norm of the inputs."""
    where: tuple[str, ...] = ("**/kernel",)
    """Prune the weights whose paths match one of these patterns."""
    examples: Count = 512
    """taylor and wanda look at this many training examples."""

    def check_values(self) -> None:
        """Checks that sparsity and pattern go together."""
        Sparse(self.sparsity or 0.0, pattern=self.pattern)

    @property
    def prunes(self) -> tuple[str, ...]:
        """As `where` says."""
        return self.where

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with zeros."""
        params = stage.variables["params"]
        grads = compute_mean_gradient(stage, setting, self.examples) if self.criterion == "taylor" else None
        norms = None
        if self.criterion == "wanda":
            norms = input_norms(stage.of_params(), params, setting.examples(self.examples))
        default = None if Pattern.parse(self.pattern).of else 0.8
        masks = prune(
            params, default if self.sparsity is None else self.sparsity, self.pattern, self.scope, self.criterion,
            self.where, grads=grads, norms=norms,
        )  # fmt: skip
        return stage.with_params(masked(params, masks))


@dataclasses.dataclass(frozen=True)
class LowRank(Step):
    """Truncates singular values: each weight becomes two thinner ones. One of rank, energy and flops says how far."""

    flops: Part | None = None
    """Keep this share of the selected weights' multiply-adds, spread so that the least is lost; 0.5 where
    none of flops, energy and rank is given."""
    energy: Part | None = None
    """Keep this share of the squares of each weight's singular values instead."""
    rank: Count | None = None
    """Give all weights this rank instead."""
    where: tuple[str, ...] = ("**/kernel",)
    """Factorize the weights whose paths match one of these patterns."""
    form: Literal["auto", "channel", "spatial"] = "auto"
    """channel factorizes convolutions as all inputs times all outputs, spatial as rows times columns, auto as
    what keeps more."""
    examples: CountOrZero = 0
    """Above 0, minimize the error on the activations of this many training examples; convolutions then take
    channel."""

    def check_values(self) -> None:
        """Checks that there is one budget."""
        assert self.budget

    @property
    def budget(self) -> dict[str, Any]:
        """How far, and by what."""
        return pick_one(flops=self.flops, energy=self.energy, rank=self.rank) or {"flops": 0.5}

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with low-rank weights."""
        params, f = stage.variables["params"], stage.of_params()
        found = input_covariances(f, params, setting.examples(self.examples)) if self.examples else None
        work = count_multiply_adds(f, params, *setting.inputs(1)) if "flops" in self.budget else None
        thin = low_rank(params, where=self.where, form=self.form, work=work, covariances=found, **self.budget)
        return stage.with_params(thin)


@dataclasses.dataclass(frozen=True)
class Share(Step):
    """Lets the weights of each layer share few values, the centers of k-means."""

    bits: Annotated[int, Interval(ge=1, le=8)] = 4
    """Give each layer 2 ** bits different values."""
    where: tuple[str, ...] = ("**/kernel",)
    """Share values among the weights whose paths match one of these patterns."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage with codebooks."""
        return stage.with_params(share(stage.variables["params"], self.bits, self.where))


@dataclasses.dataclass(frozen=True)
class Fold(Step):
    """Computes what the parameters alone decide beforehand: BatchNorm goes into the weights. No training after it."""

    same_function: ClassVar[bool] = False

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage of the folded function.

        It is left as it is where nothing can be folded, and where the task calls methods of the model: what is folded
        is the call alone, and each method would need weights of its own.
        """
        if methods := _find_methods(stage, setting):
            log.info(
                f"{name}: the model is left as it is, since the task decodes with its {' and '.join(methods)}"
            )
            return stage
        call, variables = fold(stage.call, stage.variables, *setting.inputs(1))
        if _same_values(stage.variables, variables):
            log.info(f"{name}: the model has nothing to fold")
            return stage
        return dataclasses.replace(stage, call=call, variables=variables, file=None)


@dataclasses.dataclass(frozen=True)
class Quantize(Step):
    """Rounds weights and activations to integers. No training after it."""

    same_function: ClassVar[bool] = False
    bits: Literal[4, 8] = 8
    """Store weights in this many bits; products of 4-bit weights are computed in floating point."""
    activations: Literal["static", "dynamic", "none"] = "static"
    """static rounds activations by ranges seen beforehand, dynamic by the ranges of each batch, none leaves
    them in floating point."""
    method: Literal["mse", "absmax", "percentile", "entropy"] = "mse"
    """static computes a range from what was seen by this method."""
    examples: Count = 512
    """static looks at this many training examples."""
    where: tuple[str, ...] = ("**/{kernel,embedding}",)
    """Quantize the weights whose paths match one of these patterns."""
    lowering: Literal["auto", "int8"] = "auto"
    """auto leaves in floating point what is slower as integers on this device; int8 leaves nothing."""

    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage of integers."""
        if _shared(stage.variables):
            raise UserError(
                f"{name}: weights that share the values of a codebook are not quantized: leave out this step, or "
                "the one that shares"
            )
        variables = quantize(stage.variables, self.where, bits=self.bits)
        ranges = self._ranges(stage, setting, name) if self.ranged else None

        accelerated = Int8(self.activations if self.bits == 8 else "none", ranges, self.lowering)
        return dataclasses.replace(stage, variables=variables, accelerated=accelerated, file=None)

    @property
    def ranged(self) -> bool:
        """Whether activations are rounded by ranges that are kept."""
        return self.activations == "static" and self.bits == 8

    def ranges_file(self, setting: Setting, name: str) -> Path:
        """Where those are kept."""
        return setting.directory / f"{name}-ranges.json"

    def _ranges(self, stage: Stage, setting: Setting, name: str) -> Calibration:
        """Those of an earlier attempt where there are any."""
        file = self.ranges_file(setting, name)
        if not file.exists():
            calibrate(stage.call, stage.variables, setting.examples(self.examples), method=self.method).save(
                file
            )
        return Calibration.load(file)


def _find_methods(stage: Stage, setting: Setting) -> tuple[str, ...]:
    """Those of the model that the task evaluates or predicts with."""
    task = setting.task

    def use(apply: Bound, batch: PyTree) -> PyTree:
        batch = task.features(batch)
        return task.evaluate(apply, batch), task.predict(apply, batch)

    batch = setting.problem.batch_shape(1)
    return find_methods(use, stage.accelerated(stage.call), stage.variables, batch)


def _same_values(before: PyTree, after: PyTree) -> bool:
    """Whether all weights are the same, in whatever shape."""
    old, new = (flatten_by_path(tree) for tree in (before, after))
    return old.keys() == new.keys() and all(
        np.array_equal(np.ravel(old[path]), np.ravel(new[path])) for path in old
    )


def _shared(variables: PyTree) -> bool:
    leaves = jax.tree.leaves(variables, is_leaf=is_compressed)
    return any(isinstance(x, CodebookArray) for x in leaves)
