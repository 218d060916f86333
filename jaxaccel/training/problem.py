"""What a recipe's model is to learn: its task, its data and its model, opened when first asked for, and once."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxaccel.data.data_sets import Splits, open_splits
from jaxaccel.data.examples import read_elements
from jaxaccel.models.adapter import Model, as_model, takes_argument
from jaxaccel.tasks import Task
from jaxaccel.tasks.bring_arrays import batch_shapes
from jaxaccel.training.facts import Facts, find_fitted_options
from jaxaccel.training.recipe import Recipe

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """The task, the data and the models of `recipe`.

    Its properties raise `UserError` where a data set cannot be opened or does not suit the task.
    """

    recipe: Recipe
    kept: Facts | None = None
    """What an earlier run kept of the data, which then need not be there."""
    before: Facts | None = None
    """What the run that goes on kept of the data: what was learned of them must not be learned anew."""
    earlier: Facts | None = None
    """What the run that weights are taken from kept of its data."""
    teacher: Task | None = None
    """The fitted task of the model that is to be learned from, where that is another one's."""

    @functools.cached_property
    def splits(self) -> Splits:
        """What is trained on, evaluated on and tested on."""
        data = self.recipe.data
        return open_splits(
            data.name, train=data.train_split, evaluation=data.eval_split, validation=data.validation,
            directory=data.dir, downloads=data.downloads, label=data.label,
            eval_name=data.eval_name,
        )  # fmt: skip

    @functools.cached_property
    def task(self) -> Task:
        """What the model does, with the options that follow from the training split."""
        task = self.recipe.task
        known = self.kept or self.before
        if known is not None and not any(name.startswith("task.") for name in known.missing):
            return known.fit(task)
        train = self.splits.train
        task.facts(train.features)  # says what is wrong with the features before their values are read
        task = task.after(self.earlier.fitted) if self.earlier else task
        return (task.beside(self.teacher) if self.teacher else task).fit(train)

    @property
    def fitted(self) -> Recipe:
        """The recipe with that task."""
        return dataclasses.replace(self.recipe, task=self.task)

    @functools.cached_property
    def facts(self) -> Facts:
        """What the data say of themselves."""
        if self.kept is not None:
            return self.kept
        task, train = self.task, self.splits.train
        values = task.facts(train.features)
        example = read_elements(train, task.example, range(1))[0]
        found = Facts.of(values, example, find_fitted_options(self.recipe.task, task))
        if self.recipe.data.eval_name:
            for held in self.splits.held_out:
                found.accept(held, task, f"{train.name}, which is trained on")
        return found

    @functools.cached_property
    def lengths(self) -> tuple[np.ndarray, ...]:
        """Of the examples of the training split and of each split that is held out, where they vary."""
        return tuple(map(self.task.lengths, (self.splits.train, *self.splits.held_out)))

    def with_batch_size(self, size: int) -> "Problem":
        """The same problem in batches of `size` examples; data that is open stays open."""
        other = dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, batch_size=size))
        known = ("splits", "task", "facts", "lengths")
        vars(other).update({name: vars(self)[name] for name in known if name in vars(self)})
        return other

    def batch_shape(self, size: int, length: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of `size` examples, filled up to `length`, by default to the greatest."""
        example = self.facts.example
        if length:
            blank = {name: np.zeros(x.shape, x.dtype) for name, x in example.items()}
            padded = self.task.pad(blank, length)
            example = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in padded.items()}
        return batch_shapes(example, size)

    def inputs(self, size: int) -> tuple[PyTree, ...]:
        """Shapes and dtypes of such a batch's inputs to the model."""
        return jax.eval_shape(
            lambda batch: self.task.inputs(self.task.features(batch)), self.batch_shape(size)
        )

    def model(self, factory: Any = None, size: int = 0) -> Model:
        """The pure functions of what `factory` makes for this data.

        Args:
          factory: a function that makes a model; by default the recipe's own.
          size: examples in the batch of which the model sees the shapes; by default the recipe's.

        Raises:
          UserError: it makes no model, or one that does not take the data.
        """
        factory, inputs = factory or self.recipe.model, self.inputs(size or self.recipe.chosen_batch_size)
        return as_model(factory, {**self.facts.values, **self._sample(factory, inputs)}, inputs)

    def _sample(self, factory: Any, inputs: tuple[PyTree, ...]) -> Mapping[str, np.ndarray]:
        """Some inputs, for models that start from the statistics of their data."""
        if not takes_argument(factory, "sample"):
            return {}
        if self.kept is not None:  # weights are loaded, and only the shape counts
            return {"sample": np.zeros(inputs[0].shape, np.float32)}
        return {"sample": self.task.sample(self.splits.train)}
