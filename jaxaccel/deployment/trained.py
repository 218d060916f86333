"""A run opened again: its model, ready to predict, to be evaluated, and to be transformed. ``ja.load(run)``."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxaccel.compression.pipeline_directory import find_record
from jaxaccel.compression.reopen import open_stage
from jaxaccel.compression.stage import Int8
from jaxaccel.core import runtime
from jaxaccel.core.options import Count, checked
from jaxaccel.core.paths import with_leaves
from jaxaccel.core.platform import count_devices
from jaxaccel.data import Source
from jaxaccel.data.data_sets import open_source, set_aside
from jaxaccel.data.examples import read_elements
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import Model, abstract_variables, inference, takes_argument
from jaxaccel.tasks import Task, prediction
from jaxaccel.tasks.prediction import BATCH, Guess
from jaxaccel.training.checkpoint import flatten_by_path
from jaxaccel.training.evaluation import (
    Evaluation,
    compile_predict,
    evaluate_metrics,
    evaluate_with_report,
)
from jaxaccel.training.facts import Facts, find_fitted_options, read_facts
from jaxaccel.training.loss import TRANSFORMATIONS
from jaxaccel.training.messages import scores_text
from jaxaccel.training.problem import Problem
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import load_recipe
from jaxaccel.training.saved_checkpoints import CHECKPOINTS, read_scores, read_weights
from jaxaccel.transforms import retarget

PyTree = Any
Which = Literal["best", "last"] | int | str


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model as a run left it, made by `load_run`; only `evaluate` and `report` need the data set."""

    directory: Path
    """Of the run."""
    recipe: Recipe
    """How it was trained."""
    facts: Facts
    """What the run kept of its data set."""
    step: int | str
    """Training steps that these weights have seen, or the step of a pipeline that they come from."""
    metrics: Mapping[str, float]
    """What was measured when these weights were saved; empty where nothing was."""
    params: PyTree
    """``{"params": ..., "model_state": ...}``, as `ja.params.save` stores them: the first argument of `function`."""
    call: Callable[..., PyTree]
    """(params, *inputs of the model) -> outputs, in inference: the model itself."""
    run: Callable[..., PyTree]
    """The same as evaluations compute it: in the precision of the recipe, in forms that this device runs fast."""
    plain: Callable[..., PyTree] | None = None
    """`call` as it is without compressed arrays, where that is something else."""
    integers: Int8 | None = None
    """What made `call` of `plain`, where products are of integers."""
    model: Model | None = None
    """``init`` and ``apply``, with which training could go on; None for the last stages of a pipeline, which cannot."""

    @property
    def task(self) -> Task:
        """What the model does."""
        return self.recipe.task

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits; None where there are no classes."""
        return self.facts.class_names

    @checked
    def predict(self, given: Any, *, batch: Count = BATCH, **options: Any) -> PyTree:
        """The task's predictions, NumPy arrays: logits (B, classes) for images and texts, (classes,) for a single one.

        Images may be arrays of any dtype with levels from 0 to 255 (`white` says otherwise), Pillow images, paths of
        files, or lists of these; `ImageClassification.bring` has the rules. Texts are ``str``, one or many.
        Sounds are paths of files, samples at the model's rate, or `ja.tasks.Recording`s; of speech there are
        ``symbols``, ``starts`` and ``ends`` (B, outputs), filled up with -1, and ``score`` (B,). Of other tasks
        examples are arrays, by name. `jaxaccel.predict` reads whole folders and files, and gives texts for symbols.

        Args:
          given: one example or many.
          batch: how many are computed at a time.
          options: of the task's `bring`; ``white=1`` of images with pixels in [0, 1].

        Raises:
          UserError: the model does not take that; the message says what it takes.
        """
        compute = functools.partial(self._predict, self.params)
        return prediction.predict(self.task, self.facts.example, compute, given, size=batch, **options)

    @checked
    def classify(self, given: Any, *, top: Count = 5, **options: Any) -> list[Guess] | list[list[Guess]]:
        """The most probable classes by name, as ``Guess(name, probability)``, the most probable first.

        Args:
          given: as `predict` takes it; of a single example the answer is one list.
          top: how many classes to name.
          options: of `predict`.

        Raises:
          UserError: the model does not classify, or does not take that.
        """
        return prediction.classify(self.predict(given, **options), self.class_names, top)

    def evaluate(
        self,
        split: str | None = None,
        *,
        source: Source | None = None,
        advance: Callable[[], Any] = lambda: None,
    ) -> dict[str, float]:
        """The task's metrics over a split, as training computed them for result.json.

        Args:
          split: of the run's data set, with slices as TFDS writes them; "validation" is the share that
            `Data.validation` set aside, where it did; by default `Data.eval_split`.
          source: examples to evaluate on instead, of the same classes: ``ja.data.open("folder:photos", "test")``.
          advance: called after each batch.

        Raises:
          UserError: there is no such split, or the data set is not there or has other classes.
        """
        found, size = (
            self.source(split) if source is None else self.accept(source),
            self._evaluation_size,
        )
        return evaluate_metrics(self.task, self.run, self.params, found, size, advance)

    def report(
        self,
        split: str | None = None,
        *,
        source: Source | None = None,
        advance: Callable[[], Any] = lambda: None,
    ) -> Evaluation:
        """As `evaluate`, with what the task has to say of each class and of each example."""
        found, size = (
            self.source(split) if source is None else self.accept(source),
            self._evaluation_size,
        )
        return evaluate_with_report(self.task, self.run, self.params, found, size, self.facts.values, advance)

    def source(self, split: str | None = None) -> Source:
        """A split of the data set that the run was trained on.

        Raises:
          UserError: it cannot be opened, or is no longer what it was.
        """
        data = self.recipe.data
        where: dict[str, Any] = {"directory": data.dir, "downloads": data.downloads, "label": data.label}
        if split == "validation" and data.validation:
            whole = open_source(data.name, data.train_split, **where)
            return self.accept(set_aside(whole, data.validation)[1])
        name = data.name if split and split.startswith(data.train_split) else data.eval_name or data.name
        return self.accept(open_source(name, split or data.eval_split, **where))

    def with_task(self, **options: Any) -> "Trained":
        """The same model with other options of its task, such as a beam; what it was trained with stays.

        Raises:
          UserError: the task has no such options.
        """
        task: Any = self.task
        names = {field.name for field in dataclasses.fields(task)}
        if odd := sorted(options.keys() - names):
            raise UserError(f"{option(odd[0])} is nothing that {type(task).__name__} knows: leave it out")
        recipe = dataclasses.replace(self.recipe, task=dataclasses.replace(task, **options))
        return dataclasses.replace(self, recipe=recipe)

    @functools.cached_property
    def function(self) -> Callable[[PyTree, Any], PyTree]:
        """The model as a pure function ``f(params, x)`` of `params` and of arrays as `predict` takes them.

        Of images x is (B, H, W, C), levels from 0 to 255 of any dtype, in the model's size. It computes in float32,
        whatever the recipe's precision: ``ja.int8(run.function)(ja.quantize(run.params), x)`` changes that.
        """
        task, example, call = self.task, self.facts.example, self.call

        def function(params: PyTree, x: Any) -> PyTree:
            return call(params, *task.inputs(task.features(task.batch_of(x, example))))

        return function

    @property
    def _evaluation_size(self) -> int:
        """Examples in a batch of evaluation: as many of the longest ones as a step of training may have tokens."""
        recipe, bounds = self.recipe, self.task.bounds
        if recipe.batch_tokens and bounds:
            return max(recipe.batch_tokens // bounds[-1], 1)
        return recipe.chosen_batch_size

    @functools.cached_property
    def _predict(self) -> Callable[..., PyTree]:
        return compile_predict(self.task, self.run)

    def accept(self, source: Source) -> Source:
        """`source`, whose classes and shapes must be those of the model.

        Raises:
          UserError: they are not.
        """
        return self.facts.accept(source, self.task, f"{self.directory} was trained on")

    def __repr__(self) -> str:
        name = getattr(self.recipe.model, "func", self.recipe.model)
        count = sum(x.size for x in jax.tree.leaves(self.params.get("params", self.params)))
        return (
            f"Trained({self.directory}: {getattr(name, '__name__', type(name).__name__)}, {count:,} parameters, "
            f"step {self.step}, {scores_text(self.metrics)})"
        )


@checked
def load_run(run: Path | str, *, which: Which = "best", trust: bool = False) -> Trained:
    """The model of a run, ready to predict; nothing in its directory is changed.

    Args:
      run: directory of a run, also of one that still trains; or of a pipeline of `ja.compress`, or a packed file in it.
      which: the checkpoint with the best metric, the last one, or that of a step; the name of a step of a pipeline.
      trust: execute code that the run brings along, also where somebody else wrote it.

    Raises:
      UserError: there is no such run or checkpoint, or it is damaged.
    """
    runtime.setup()
    place = Path(run)
    if find_record(place.parent if place.is_file() else place).is_file():
        return _of_pipeline(place, which, trust)
    if (place / "best" / "checkpoints").is_dir():
        raise UserError(f"{place} holds several replicas: take the best of them, {place / 'best'}")
    if not (place / "recipe.json").is_file():
        what = "no directory of a run" if place.exists() else "not there"
        raise UserError(f"{place} is {what}: name one that jaxaccel.train or jaxaccel.compress wrote")
    recipe = load_recipe(place, trust=trust)
    problem = Problem(recipe, kept=_facts(place, recipe))
    recipe, facts, model = problem.fitted, problem.facts, problem.model()
    if not (isinstance(which, int) or which in ("best", "last")):
        raise UserError(
            f"{place} has no checkpoint {which!r}: there are best, last, and the numbers of steps"
        )
    step, weights = read_weights(place, recipe.task.metric, recipe.task.better, which)
    measured = read_scores(place / CHECKPOINTS / str(step))
    params = _filled(place, model, weights)
    return Trained(
        place, recipe, facts, step, measured, params, inference(model), _evaluated(recipe, model), model=model
    )


def _of_pipeline(place: Path, which: Which, trust: bool) -> Trained:
    directory = place if place.is_dir() else place.parent
    name = str(which) if which not in ("best", "last") else None
    if place.is_file():
        name = place.stem.partition("-")[2]
    stage, setting, receipt = open_stage(directory, name, trust)
    call = stage.accelerated(stage.call)
    recipe = dataclasses.replace(setting.training, batch_size=setting.batch, task=setting.task)
    integers = stage.accelerated if isinstance(stage.accelerated, Int8) else None
    return Trained(
        directory, recipe, setting.known, receipt.step, receipt.scores, stage.variables, call, stage.run,
        stage.call, integers,
    )  # fmt: skip


def _facts(run: Path, recipe: Recipe) -> Facts:
    kept = read_facts(run)
    if kept and not any(_needs(recipe, name) for name in kept.missing):
        return kept
    data = recipe.data
    try:
        source = open_source(
            data.name, data.train_split, directory=data.dir, downloads=data.downloads, label=data.label
        )
    except UserError as error:
        raise UserError(
            f"{run} keeps too little of its data set to do without it, and it cannot be opened: {error.message}"
        ) from error
    task = recipe.task.fit(source)
    example = read_elements(source, task.example, range(1))[0]
    return Facts.of(task.facts(source.features), example, find_fitted_options(recipe.task, task))


def _needs(recipe: Recipe, name: str) -> bool:
    """Whether the model cannot be made without the fact of that name, or used without that option of its task."""
    return (
        name.startswith("task.")
        or takes_argument(recipe.model, name)
        or takes_argument(recipe.model, "facts")
    )


def _filled(run: Path, model: Model, weights: Mapping[str, np.ndarray]) -> PyTree:
    """The variables of `model` with these weights."""
    params, state = abstract_variables(model)
    own = {"params": params, "model_state": state}
    there = {path: x.shape for path, x in weights.items()}
    expected = {path: x.shape for path, x in flatten_by_path(own).items()}
    if odd := sorted(path for path in {*there} | {*expected} if there.get(path) != expected.get(path)):
        path = odd[0]
        raise UserError(
            f"the model in {run}/recipe.json is not the one of its checkpoint any more: {path} has shape "
            f"{expected.get(path, 'none')} in the model and {there.get(path, 'none')} in the checkpoint"
        )
    return jax.device_put(with_leaves(own, weights))


def _evaluated(recipe: Recipe, model: Model) -> Callable[..., PyTree]:
    """As training evaluates: the same numbers."""

    def run(params: PyTree, *inputs: PyTree, **method: str) -> PyTree:
        def call(weights: PyTree, *inputs: PyTree, **method: str) -> PyTree:
            return inference(model)(params | {"params": weights}, *inputs, **method)

        return TRANSFORMATIONS[recipe.precision](call)(params["params"], *inputs, **method)

    return retarget(run, argnums=()) if recipe.lowering == "auto" and count_devices() == 1 else run
