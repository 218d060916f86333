"""A pipeline's directory opened again: the model as one of its steps left it, without the data set."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxaccel import compression
from jaxaccel.compression import pipeline_directory
from jaxaccel.compression.receipts import Receipt
from jaxaccel.compression.stage import Setting, Stage, stage_of_trained
from jaxaccel.compression.step import Step
from jaxaccel.compression.steps import Quantize
from jaxaccel.compression.training_steps import Student
from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.files import read_json
from jaxaccel.errors import UserError
from jaxaccel.models.packed import check_stored
from jaxaccel.training import options_json
from jaxaccel.training.facts import read_facts
from jaxaccel.training.file_names import FileNames
from jaxaccel.training.recipe_file import from_json, read_recipe_file
from jaxaccel.transforms.params.load import load as load_params


def open_stage(
    directory: Path, step: str | None = None, trust: bool = False
) -> tuple[Stage, Setting, Receipt]:
    """The stage after `step`, by default the last one that has its receipt; nothing is written.

    Steps that leave the function as it is are read from their packed files. Folding and quantizing are done again, on
    shapes and on the ranges that were calibrated, and their results are read as well.

    Raises:
      UserError: the directory holds no such step, or is damaged, or a step of the user's own is in the way.
    """
    try:
        record, receipts = (
            pipeline_directory.read_record(directory),
            read_json(directory / pipeline_directory.RECEIPTS),
        )
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): run the pipeline again"
        ) from error
    names, kept = _names(pipeline_directory.find_record(directory), record, trust), read_facts(directory)
    try:
        rows = [Receipt(**row) for row in receipts["receipts"]]
        steps = {"origin": None} | {
            name: _step(name, values, names) for name, values in record["pipeline"].items()
        }
        setting = Setting(
            from_json(record["training"], names),
            directory,
            record["batch"],
            kept=None if kept and kept.missing else kept,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory} was not written by jaxaccel, or is damaged: {error}") from error
    done = [row.step for row in rows]
    if not done or (step or done[-1]) not in done:
        hint = suggest_nearest(str(step), done) if done else ""
        raise UserError(
            f"{directory} has no step {step!r} that is done: there is {', '.join(done) or 'none'}{hint}"
        )
    last = done.index(step) if step else len(done) - 1
    factory = setting.training.model
    model, file = setting.model(factory), setting.origin
    params, state = check_stored(load_params(file), model, file)
    stage = stage_of_trained(factory, {"params": params, "model_state": state}, model)
    for number, (name, taken) in enumerate([*steps.items()][: last + 1]):
        file = setting.file(number, name)
        if taken is not None and not taken.same_function:
            stage = _again(taken, stage, setting, name)
        stage = dataclasses.replace(stage, variables=load_params(file, like=stage.variables), file=file)
    return stage, setting, rows[last]


def _again(step: Step, stage: Stage, setting: Setting, name: str) -> Stage:
    """The stage after `step`, whose variables are not needed."""
    if isinstance(step, Student):
        step = dataclasses.replace(step, init_from=None)
    if isinstance(step, Quantize) and step.ranged and not step.ranges_file(setting, name).exists():
        raise UserError(
            f"{step.ranges_file(setting, name)} is missing, the ranges of {name}: run the pipeline again"
        )
    return step.apply(stage, setting, name)


def _names(file: Path, record: Mapping[str, Any], trust: bool) -> FileNames:
    """What names in a pipeline stand for: as in the run that it began with, where that is still there."""
    origin = Path(str(record.get("origin"))) / "recipe.json"
    if not origin.is_file():
        return FileNames(file, b"", trust=trust)
    run, content = read_recipe_file(origin)
    return FileNames(origin, content, tuple(run["modules"]), trust)


def _step(name: str, values: Mapping[str, Any], names: FileNames) -> Step:
    """The step that `Pipeline.as_json` wrote down."""
    public = values["kind"] in dir(compression)
    kind = getattr(compression, values["kind"]) if public else None
    if not (isinstance(kind, type) and issubclass(kind, Step) and kind is not Step):
        raise UserError(f"{name} is a {values['kind']}, which is no step of jaxaccel: take it in Python")
    return options_json.decode(
        {key: value for key, value in values.items() if key != "kind"}, kind, names, name
    )
