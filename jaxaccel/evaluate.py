"""Evaluates a trained model on a whole split: ``python -m jaxaccel.evaluate RUN [--split test] [--which best]``.

RUN is the directory of a run, of its best replica (runs/NAME/best), or of a compressed model (runs/NAME-compressed); or
a bundle that jaxaccel.export wrote, which is judged by what its engine gives. Into RUN/evaluation/SPLIT, or
BUNDLE-evaluation/SPLIT, it writes

  evaluation.json   the metrics; of a classifier precision, recall, F1 and support of each class, and their means
  confusion.csv     of a classifier how many examples of each class (row) were taken for which (column)
  confusion.png     the same as a picture, each row by its share
  mistakes.json     the mistakes that it is surest of, with the ids of the examples, and the texts where they are such
  mistakes.png      their pictures, where they are such

For instance:

  python -m jaxaccel.evaluate runs/digits
  python -m jaxaccel.evaluate runs/digits --split train --which last --out train-last
  python -m jaxaccel.evaluate runs/flowers --data folder:new_photos --split train+test
  python -m jaxaccel.evaluate runs/flowers-bundle --data folder:new_photos --split test --engine onnxruntime
"""

import csv
import dataclasses
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from jaxaccel import cli
from jaxaccel.core.files import write_text
from jaxaccel.core.options import CountOrZero, Options
from jaxaccel.data import Source
from jaxaccel.data.data_sets import open_source
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.deployed import Deployed
from jaxaccel.deployment.load import load
from jaxaccel.deployment.trained import Trained
from jaxaccel.errors import UserError, option
from jaxaccel.tasks import Task
from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.training import plot_mistakes, run_directory
from jaxaccel.training.evaluation import Evaluation
from jaxaccel.training.evaluation_tables import class_tables, mistakes_table
from jaxaccel.training.messages import scores_text
from jaxaccel.training.plot_mistakes import Mistake


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(Options):
    """What to evaluate, and where to write it."""

    split: str = ""
    """Evaluate on this split, in TFDS's slicing syntax: train[:90%]; validation is the share that
    --data.validation set aside [default: the run's --data.eval-split]."""
    which: str = "best"
    """Evaluate this checkpoint: best, last or the number of a step; of a compressed model the name of a step,
    by default the last."""
    data: str = ""
    """Evaluate on another data set with the same classes: a name, or a folder with one subfolder a class
    [default: the run's]."""
    data_dir: Path | None = None
    """Look for prepared data sets in this directory [default: the run's]."""
    engine: EngineName = "auto"
    """Compute a bundle by this: auto, xla, onnxruntime or openvino; auto takes the fastest on this processor."""
    out: Path | None = None
    """Write to this directory [default: RUN/evaluation/SPLIT, or BUNDLE-evaluation/SPLIT]."""
    mistakes: CountOrZero = 36
    """Number of the surest mistakes to write down and to draw; 0 writes none."""
    beam: CountOrZero = 0
    """Of a model that translates, search for the best translation among so many hypotheses [default: the run's
    --task.beam]."""
    trust: bool = False
    """Execute code that the run brings along, also where somebody else wrote it."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""


def evaluate(run: Path | str, options: EvaluateOptions = EvaluateOptions()) -> Evaluation:
    """Evaluates a run and writes all about it, as the command does.

    Raises:
      UserError: there is no such run, checkpoint, split or data set, or the directory cannot be written.
    """
    trained = load(
        run,
        which=int(options.which) if options.which.isdecimal() else options.which,
        trust=options.trust,
        engine=options.engine,
    )
    if options.beam:
        if isinstance(trained, Deployed):
            raise UserError(
                f"{option('beam', options.beam)} is for runs: a bundle searches as it was exported"
            )
        trained = trained.with_task(beam=options.beam)
    model = _describe(trained)
    source = _find_source(trained, options)
    out = options.out or model.out / _folder(source.split)
    found = _evaluated(trained, source)
    listed = _write(out, model, source, found, options.mistakes)
    console = Console(highlight=False, soft_wrap=True)
    heading = f"{model.heading}, {found.examples:,} examples of {source.name} {source.split}"
    console.print(escape(f"{heading}: {scores_text(found.metrics)}"))
    if isinstance(found.report, ClassReport):
        for shown in class_tables(found.report):
            console.print(shown)
    if listed and any(mistake.text for mistake in listed):
        console.print(mistakes_table(listed))
    pictures = [name for name in ("confusion.png", "mistakes.png") if (out / name).is_file()]
    console.print(escape(f"see {out}" + (f"/{' and '.join(pictures)}" if pictures else "")))
    return found


@dataclasses.dataclass(frozen=True)
class Model:
    """What is evaluated, for headings and files."""

    name: str
    heading: str
    out: Path
    """Where evaluations of it go."""
    task: Task
    class_names: tuple[str, ...]
    facts: Mapping[str, Any]
    """By which its evaluation is known: run, step and engine."""


def _describe(trained: Trained | Deployed) -> Model:
    names = trained.class_names or ()
    if isinstance(trained, Trained):
        place, step = trained.directory, trained.step
        facts, out = {"run": str(place), "step": step}, place / "evaluation"
        return Model(trained.recipe.name, f"{place}, step {step}", out, trained.task, names, facts)
    place, engine = trained.bundle.place, trained.engine.name
    out = place.with_name(
        f"{place.name.removesuffix('.zip')}-evaluation"
    )  # beside it: nothing is added to a bundle
    facts = {"run": str(place), "step": trained.bundle.manifest.origin.get("step"), "engine": engine}
    return Model(trained.bundle.name, f"{place}, {engine}", out, trained.task, names, facts)


def find_worst_mistakes(
    model: Model, source: Source, found: Evaluation, count: int
) -> tuple[list[Mistake], list[np.ndarray]]:
    """The wrong predictions that the model is surest of, the surest first, and their pictures, where they are such."""
    judged, names = found.judged, model.class_names
    wrong = np.flatnonzero(find_wrong(found))
    order = wrong[np.argsort(-judged["probability"][wrong], kind="stable")][:count]
    listed, images = [], []
    for index, example in zip(order.tolist(), source.__getitems__(order.tolist()), strict=True):
        label, predicted = (names[judged[name][index]] for name in ("label", "predicted"))
        probabilities = (float(judged[name][index]) for name in ("probability", "of_label"))
        shown = model.task.show(example)
        text = shown if isinstance(shown, str) else ""
        listed.append(Mistake(index, _id(example, index), label, predicted, *probabilities, text=text))
        images += [shown] if isinstance(shown, np.ndarray) else []
    return listed, images


def find_wrong(found: Evaluation) -> np.ndarray:
    """(examples,) bool: which are of a class and were taken for another."""
    return (found.judged["predicted"] != found.judged["label"]) & (found.judged["label"] >= 0)


def _evaluated(trained: Trained | Deployed, source: Source) -> Evaluation:
    own = isinstance(trained, Trained)
    size = trained.recipe.chosen_batch_size if own else trained.engine.batches[-1]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("evaluating", total=-(-len(source) // size))
        return trained.report(source=source, advance=lambda: progress.advance(task))


def _write(out: Path, model: Model, source: Source, found: Evaluation, count: int) -> list[Mistake]:
    """Writes all files, and returns the mistakes that are among them."""
    report, about, listed = found.report, {}, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(report, ClassReport):
            listed, images = find_worst_mistakes(model, source, found, count)
            errors = int(find_wrong(found).sum())
            title = f"{model.name} on {source.split}: {100 * report.accuracy:.2f}% of {found.examples:,}"
            plot_mistakes.draw_confusion(out / "confusion.png", report, title)
            write_text(out / "confusion.csv", _csv(report))
            run_directory.write_json(out / "mistakes.json", [_as_row(mistake) for mistake in listed])
            if images:
                of = f"{len(listed)} of {errors:,} mistakes, surest first: true class above, taken for below"
                plot_mistakes.draw_mistakes(out / "mistakes.png", listed, images, of)
            else:
                (out / "mistakes.png").unlink(missing_ok=True)  # of an evaluation before
            about = {"mistakes": errors, "means": report.means(), "classes": report.rows(),
                     "confusion": report.confusion.tolist()}  # fmt: skip
        written = {
            **model.facts, "data": source.name, "split": source.split, "examples": found.examples,
            "metrics": dict(found.metrics), **about,
        }  # fmt: skip
        run_directory.write_json(out / "evaluation.json", written)
        return listed
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write in {out} ({reason}): choose another place with {option('out', 'DIR')}"
        ) from error


def _find_source(trained: Trained | Deployed, options: EvaluateOptions) -> Source:
    if isinstance(trained, Deployed):
        name = options.data or str(trained.bundle.manifest.origin.get("data", ""))
        return open_source(name, options.split or "test", directory=options.data_dir)
    data = trained.recipe.data
    directory = options.data_dir or data.dir
    if not options.data:
        own = dataclasses.replace(trained.recipe, data=dataclasses.replace(data, dir=directory))
        return dataclasses.replace(trained, recipe=own).source(options.split or None)
    split = options.split or data.eval_split
    return trained.accept(
        open_source(options.data, split, directory=directory, downloads=data.downloads, label=data.label)
    )


def _csv(report: ClassReport) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *report.class_names])
    writer.writerows(
        [name, *row] for name, row in zip(report.class_names, report.confusion.tolist(), strict=True)
    )
    return text.getvalue()


def _as_row(mistake: Mistake) -> dict[str, Any]:
    row = dataclasses.asdict(mistake)
    return row if mistake.text else {name: x for name, x in row.items() if name != "text"}


def _folder(split: str) -> str:
    """A directory's name for a split: train[:90%] becomes train[-90%]."""
    return re.sub(r"[^\w\[\]%+.-]", "-", split)


def _id(example: Any, index: int) -> str:
    for name in ("id", "file_name"):
        if name in example:
            value = np.asarray(example[name]).item()
            return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return str(index)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    words = list(argv)
    run = words.pop(0) if words and not words[0].startswith("-") else None
    if run is None and not {"-h", "--help"} & set(words):
        raise UserError("name a run: python -m jaxaccel.evaluate runs/digits (--help shows all)")
    options = cli.parse_options("python -m jaxaccel.evaluate RUN", __doc__ or "", EvaluateOptions(), words)
    assert run is not None
    try:
        evaluate(run, options)
    except UserError as error:
        raise error.renamed(lambda path: "data_dir" if path == "data.dir" else path) from error
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
