"""Runs a pipeline on a trained model, with a receipt after each step."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxaccel.compression import pipeline_directory
from jaxaccel.compression.pipeline import Pipeline
from jaxaccel.compression.plot import draw_pareto
from jaxaccel.compression.receipts import Receipt, make_receipt
from jaxaccel.compression.report import list_notes, receipt_line, receipt_tables
from jaxaccel.compression.stage import Setting, Stage, stage_of_trained
from jaxaccel.compression.training_steps import FineTune
from jaxaccel.core import runtime
from jaxaccel.core.options import Count, checked
from jaxaccel.core.paths import with_leaves
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import abstract_variables
from jaxaccel.models.packed import check_stored
from jaxaccel.tasks.prediction import BATCH, predict
from jaxaccel.training.directory_swap import Swap
from jaxaccel.training.evaluation import compile_predict
from jaxaccel.training.facts import read_facts
from jaxaccel.training.messages import scores_text
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import load_recipe, to_json
from jaxaccel.training.warm_start import load_start
from jaxaccel.transforms.params.load import is_packed
from jaxaccel.transforms.params.load import load as load_params
from jaxaccel.transforms.params.save import save as save_params

PyTree = Any


@dataclasses.dataclass(frozen=True)
class CompressResult:
    """What came of a pipeline."""

    directory: Path
    receipts: tuple[Receipt, ...]
    """Of the origin and of each step, in order."""
    stage: Stage
    """The last one."""
    setting: Setting

    @checked
    def predict(self, given: Any, *, batch: Count = BATCH, **options: Any) -> Any:
        """The task's predictions, NumPy arrays: logits (B, classes) for images, (classes,) for a single one.

        Args:
          given: as `ja.load(run).predict` takes it: images of any dtype, files, Pillow images, one or many.
          batch: how many are computed at a time.
          options: of the task's `bring`; ``white=1`` of images with pixels in [0, 1].

        Raises:
          UserError: the model does not take that; the message says what it takes.
        """
        compute, example = partial(self._predict, self.stage.variables), self.setting.known.example
        return predict(self.setting.task, example, compute, given, size=batch, **options)

    def __repr__(self) -> str:
        row = self.receipts[-1]
        first = self.receipts[0].packed_bytes
        return (
            f"CompressResult({self.directory}: {', '.join(row.step for row in self.receipts[1:])}; "
            f"{scores_text(row.scores)}, {row.packed_bytes:,} bytes packed, {first / row.packed_bytes:.1f}x smaller)"
        )

    @cached_property
    def _predict(self) -> Callable[..., Any]:
        return compile_predict(self.setting.task, self.stage.run)


@checked
def compress(
    pipeline: Pipeline,
    origin: Path | str,
    training: Recipe | None = None,
    *,
    run: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    batch: Count = 128,
    trust: bool = False,
) -> CompressResult:
    """Takes a trained model along `pipeline` and writes all about it to `run`.

    After each step its variables are packed to ``NUMBER-NAME.safetensors`` and a row is added to ``receipts.json``; at
    the end ``pareto.png`` shows what was paid for what. Runs of fine-tuning stand in directories of their own.

    Args:
      pipeline: the steps.
      origin: directory of a run, whose best weights count, or a file of weights: packed, or what `load_pretrained`
        reads.
      training: how the model was trained; by default the run's own recipe. Its evaluation split decides.
      run: directory to write to, by default ``runs/ORIGIN-compressed``.
      resume: go on after the last step that has its receipt; a run of fine-tuning goes on from its newest checkpoint.
      overwrite: replace what is there, which stands again where no step of the new pipeline could be taken.
      batch: examples in a batch of evaluation and of the receipts' throughput.
      trust: execute code that the run, or a teacher's, brings along, also where somebody else wrote it.

    Raises:
      UserError: a step cannot be taken with this model, or a file is none of a model; the message says what to do.
    """
    runtime.setup()
    origin = Path(origin)
    training = training or _training(origin, trust)
    directory = Path(run) if run else pipeline_directory.default_directory(origin)
    record = {
        "origin": str(origin),
        "pipeline": pipeline.as_json(),
        "training": to_json(training),
        "batch": batch,
    }
    with pipeline_directory.claim_directory(directory, origin, resume=resume, overwrite=overwrite) as swap:
        rows = (
            pipeline_directory.resume_receipts(directory, record, training, pipeline.steps) if resume else []
        )
        before = read_facts(directory if resume else origin)
        setting = Setting(training, directory, batch, trust, before=before)
        stage = _first(origin, setting)
        if not resume:
            pipeline_directory.begin(swap, record)
            setting.known.write(directory)
        return _take_steps(pipeline, stage, setting, rows, record, swap)


def _take_steps(
    pipeline: Pipeline,
    stage: Stage,
    setting: Setting,
    rows: list[Receipt],
    record: dict[str, Any],
    swap: Swap,
) -> CompressResult:
    """From the origin's stage to the end, whereby `rows` has the receipts of what is done."""
    directory, console = setting.directory, Console(highlight=False, soft_wrap=True)
    before: Stage | None = None
    for number, (name, step) in enumerate([("origin", None), *pipeline.steps.items()]):
        started, file = time.perf_counter(), setting.file(number, name)
        done = number < len(rows)
        if done and (step is None or step.same_function):
            stage = dataclasses.replace(stage, variables=load_params(file, like=stage.variables), file=file)
        elif step is not None:
            again = "  again, for what follows" if done else ""
            console.print(f"[bold]{number}/{len(pipeline.steps)} {name}[/]{again}")
            # Training shows its own progress.
            with nullcontext() if isinstance(step, FineTune) else console.status(name):
                stage = step.apply(stage, setting, name)
        if not done:
            save_params(stage.variables, file)
        pruned = (*stage.pruned, *(step.prunes if step else ()))
        stage = dataclasses.replace(stage, file=file, pruned=pruned)
        if not done:
            seconds = time.perf_counter() - started
            rows.append(make_receipt(name, stage, setting, before, rows[-1] if rows else None, seconds))
            pipeline_directory.write_receipts(directory, rows, record)
            swap.settle()
            console.print(receipt_line(rows[-1], rows))
        before = stage
    draw_pareto(directory / "pareto.png", rows, setting.task.headline)
    for shown in receipt_tables(rows, setting.task.headline):
        Console(width=max(console.width, 112)).print(shown)
    for note in list_notes(rows):
        console.print(note)
    console.print(f"see {directory}/receipts.json and pareto.png; the result is {stage.file}")
    return CompressResult(directory, tuple(rows), stage, setting)


def _training(origin: Path, trust: bool) -> Recipe:
    if (origin / "recipe.json").is_file():
        return load_recipe(origin, trust=trust)
    if not origin.exists():
        raise UserError(f"there is no run and no file {origin}")
    raise UserError(
        f"{origin} does not say how its model was trained and what on: name a recipe like it with "
        f"{option('training', 'RECIPE')}, cifar10_resnet20 for instance"
    )


def _first(origin: Path, setting: Setting) -> Stage:
    """The model that the pipeline begins with."""
    factory = setting.training.model
    model, inputs = setting.model(factory), setting.inputs(setting.batch)
    if origin.is_file() and is_packed(origin):
        params, state = check_stored(load_params(origin), model, origin)
        return stage_of_trained(factory, {"params": params, "model_state": state}, model)
    found = load_start(origin, model, inputs, setting.task.headline)
    if found.fresh:
        raise UserError(
            f"{origin} has other classes than the data ({', '.join(found.fresh)}): fine-tune it first"
        )
    params, state = abstract_variables(model)
    variables = with_leaves({"params": params, "model_state": state}, found.weights)
    return stage_of_trained(factory, jax.device_put(variables), model)
