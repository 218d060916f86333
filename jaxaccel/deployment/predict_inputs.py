"""Predictions for files, folders, streams and texts, as records that can be written one a line."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import jax

from jaxaccel.core.options import Count, checked
from jaxaccel.data.lines import read_lines
from jaxaccel.data.source import Source
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.load import Predictor, load
from jaxaccel.deployment.piped_file import HEAD_BYTES, is_file, save_file
from jaxaccel.deployment.trained import Trained, Which
from jaxaccel.errors import UserError, option
from jaxaccel.tasks import Task
from jaxaccel.tasks.prediction import BATCH, find_refused
from jaxaccel.tasks.reading import Input

STDIN = Path("-")
"""Stands for standard input."""
Record = dict[str, Any]


@checked
def predict(
    run: Path | str,
    inputs: Path | str | Sequence[Path | str] = (),
    *,
    texts: Sequence[str] = (),
    top: Count = 5,
    which: Which = "best",
    batch: Count = BATCH,
    trust: bool = False,
    engine: EngineName = "auto",
) -> Iterator[Record]:
    """Predicts what is in files, one record an input, in order and as they come.

    A record is what the task says of a prediction, ``{"input": "cat.png", "label": "cat", "scores": {"cat": 0.98}}``,
    or ``{"input": "dog.png", "error": "..."}`` of an input that cannot be read. ``ja.load(run).predict`` takes arrays.

    Args:
      run: directory of a run or of a pipeline, or a bundle, as `load` takes it.
      inputs: files and folders of pictures, sounds or texts; ``-`` reads standard input: texts or paths of files, one a
        line, or one picture or sound as it is. What is no regular file, such as a named pipe, is read as that is.
      texts: texts to predict after these.
      top: how many classes to name.
      which: the checkpoint, as `load` takes it.
      batch: inputs that are computed at a time at most.
      trust: execute code that the run brings along, also where somebody else wrote it.
      engine: what computes a bundle, as `load` takes it.

    Raises:
      UserError: there is no such run or input, or the task does not read it.
    """
    several = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    places = check_places([Path(place) for place in several])
    trained = load(run, which=which, trust=trust, engine=engine)
    sources = find_sources(trained.task, places)
    literal = read_literals(trained.task, texts)
    return itertools.chain.from_iterable(predict_sources(trained, sources, literal, top=top, batch=batch))


def check_places(places: Sequence[Path]) -> Sequence[Path]:
    """The places, each of which must be there.

    Raises:
      UserError: one is not, or standard input is named twice.
    """
    for place in places:
        if place != STDIN and not place.exists():
            raise UserError(f"the input {place} is not there: name files or folders, or - for standard input")
    if places.count(STDIN) > 1:
        raise UserError("standard input can be read once: name - once")
    return places


def find_sources(task: Task, places: Sequence[Path]) -> list[Path]:
    """The files and streams of all places: of a folder, the files in it.

    Raises:
      UserError: a folder has none that the task reads, or the task reads no files.
    """
    if not task.reads_files and (files := [place for place in places if place != STDIN]):
        task.read(files[0])  # which says so
    return [path for place in places for path in (task.find_files(place) if place.is_dir() else [place])]


def read_literals(task: Task, texts: Sequence[str]) -> list[Input]:
    """Texts given in words, as inputs.

    Raises:
      UserError: the task reads none.
    """
    return [task.read_text(text, f"text:{number}") for number, text in enumerate(texts, 1)]


def predict_sources(
    trained: Predictor,
    sources: Sequence[Path],
    literal: Sequence[Input] = (),
    *,
    top: int = 5,
    batch: int = BATCH,
    advance: Callable[[], Any] = lambda: None,
) -> Iterator[list[Record]]:
    """The records of all inputs, in order, of up to `batch` at a time.

    Files are predicted in whole batches. Of a stream, what has arrived is predicted without waiting for more.

    Args:
      trained: the model.
      sources: files and streams.
      literal: inputs that come after those.
      top: how many classes to name.
      batch: inputs that are computed at a time at most.
      advance: called whenever a source has been read.
    """
    for some in _batches(trained.task, sources, literal, batch, advance):
        yield describe_inputs(trained, some, top=top, size=batch)


def predict_split(
    trained: Trained, source: Source, *, batch: int = BATCH, top: int = 5
) -> Iterator[tuple[list[Record], int]]:
    """The examples of a split with what the model says of them, a data set for another model to train on.

    Args:
      trained: the model, whose task reads texts.
      source: the split.
      batch: examples that are computed at a time at most.
      top: how many classes to name.

    Yields:
      The records of some examples, in order, and how many others of these could not be predicted.

    Raises:
      UserError: the task reads no texts.
    """
    task = trained.task
    for start in range(0, len(source), batch):
        examples = source.__getitems__(range(start, min(start + batch, len(source))))
        inputs = [task.read_text(_text_of(task, x), f"text:{i}") for i, x in enumerate(examples, start)]
        described = describe_inputs(trained, inputs, top=top, size=batch)
        kept = [pair for pair in zip(examples, described, strict=True) if "error" not in pair[1]]
        yield [task.relabel(example, told) for example, told in kept], len(examples) - len(kept)


def _text_of(task: Task, example: Any) -> str:
    shown = task.show(example)
    if not isinstance(shown, str):
        raise UserError(f"{option('split')} is for tasks that read texts, and {type(task).__name__} does not")
    return shown


def _batches(
    task: Task, sources: Sequence[Path], literal: Sequence[Input], size: int, advance: Callable[[], Any]
) -> Iterator[list[Input]]:
    waiting: list[Input] = []
    filled = 0.0

    def fill(inputs: Iterable[Input]) -> Iterator[list[Input]]:
        nonlocal filled
        for one in inputs:
            waiting.append(one)
            filled += 0 if one.error else task.fill_of(one.given)
            if len(waiting) == size or filled >= 1:
                yield from flush()

    def flush() -> Iterator[list[Input]]:
        nonlocal filled
        if waiting:
            yield waiting.copy()
            waiting.clear()
            filled = 0.0

    for source in sources:
        if source == STDIN or not source.is_file():
            yield from flush()
            for arrived in _read_stream(task, source):
                yield from fill(arrived)
                yield from flush()
        else:
            yield from fill(_catch(str(source), task.read, source))
        advance()
    yield from fill(literal)
    yield from flush()


def _read_stream(task: Task, source: Path) -> Iterator[list[Input]]:
    """The inputs that have arrived, again and again."""
    name = "stdin" if source == STDIN else str(source)
    number, stdin = 0, contextlib.nullcontext(sys.stdin.buffer)
    try:
        with stdin if source == STDIN else source.open("rb") as opened:
            file = cast(BufferedReader, opened)
            if task.reads_paths and is_file(head := file.peek(HEAD_BYTES)):
                with save_file(file, head, Path(name).name) as path:
                    yield [one._replace(name=name) for one in _catch(name, task.read, path)]
                return
            for lines in read_lines(file, name):
                arrived: list[Input] = []
                for line in lines:
                    number += 1
                    place = f"{name}:{number}"
                    arrived += _catch(place, task.read_line, line, place)
                yield arrived
    except (UserError, OSError) as error:
        yield [Input(name, error=_reason(error))]


def _catch(name: str, read: Callable[..., Iterable[Input]], *args: Any) -> Iterator[Input]:
    """The inputs, and at their end why there are no more of them, where that is an error."""
    try:
        yield from read(*args)
    except (UserError, OSError) as error:
        yield Input(name, error=_reason(error))


def describe_inputs(trained: Predictor, inputs: Sequence[Input], *, top: int, size: int) -> list[Record]:
    """The record of each input, ``error`` where it cannot be predicted.

    Args:
      trained: the model.
      inputs: as its task reads them.
      top: how many classes to name.
      size: inputs that are computed at a time at most.
    """
    errors = {i: one.error for i, one in enumerate(inputs) if one.error}
    good = [i for i in range(len(inputs)) if i not in errors]
    try:
        predictions = _predict(trained, [inputs[i].given for i in good], size)
    except UserError:
        refused = find_refused(trained.task, trained.facts.example, [inputs[i].given for i in good])
        if not refused:
            raise
        errors |= {good[i]: reason for i, reason in refused.items()}
        good = [i for i in range(len(inputs)) if i not in errors]
        predictions = _predict(trained, [inputs[i].given for i in good], size)
    told = {i: _describe(trained, inputs[i], row, top) for i, row in zip(good, predictions, strict=True)}
    told |= {i: {"error": " ".join(reason.split())} for i, reason in errors.items()}
    return [{"input": one.name} | told[i] for i, one in enumerate(inputs)]


def _predict(trained: Predictor, given: Sequence[Any], size: int) -> list[Any]:
    """The prediction of each."""
    if not given:
        return []
    joined = trained.predict(given, batch=size)
    return [jax.tree.map(lambda x, i=i: x[i], joined) for i in range(len(given))]


def _describe(trained: Predictor, one: Input, prediction: Any, top: int) -> Record:
    try:
        return trained.task.describe(one.given, prediction, trained.facts.values, top=top)
    except UserError as error:
        return {"error": str(error)}


def _reason(error: UserError | OSError) -> str:
    return str(error) if isinstance(error, UserError) else error.strerror or str(error)
