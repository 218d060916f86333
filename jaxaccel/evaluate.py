"""Evaluates a trained model on a whole split: ``python -m jaxaccel.evaluate RUN [--split test] [--which best]``.

RUN is the directory of a run, of its best replica (runs/NAME/best), or of a compressed model (runs/NAME-compressed).
Into RUN/evaluation/SPLIT it writes

  evaluation.json   the metrics; of a classifier precision, recall, F1 and support of each class, and their means
  confusion.csv     of a classifier how many examples of each class (row) were taken for which (column)
  confusion.png     the same as a picture, each row by its share
  mistakes.json     the mistakes that it is surest of, with the ids of the examples, and the texts where they are such
  mistakes.png      their pictures, where they are such

For instance:

  python -m jaxaccel.evaluate runs/digits
  python -m jaxaccel.evaluate runs/digits --split train --which last --out train-last
  python -m jaxaccel.evaluate runs/flowers --data folder:new_photos --split train+test
"""

import csv
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from jaxaccel import cli
from jaxaccel.core.files import write_text
from jaxaccel.core.options import CountOrZero, Options
from jaxaccel.data import Source
from jaxaccel.data.data_sets import open_source
from jaxaccel.deployment.trained import Trained, load_run
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.training import plot_mistakes, run_directory
from jaxaccel.training.evaluation import Evaluation
from jaxaccel.training.messages import scores_text
from jaxaccel.training.plot_mistakes import Mistake

MAX_LETTERS = 120
"""Of a text that are shown on the terminal."""
MAX_ROWS = 20
"""Classes up to which the table on the terminal has all of them."""


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
    out: Path | None = None
    """Write to this directory [default: RUN/evaluation/SPLIT]."""
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
    trained = load_run(
        run, which=int(options.which) if options.which.isdecimal() else options.which, trust=options.trust
    )
    if options.beam:
        trained = trained.with_task(beam=options.beam)
    source = _source(trained, options)
    out = options.out or trained.directory / "evaluation" / _folder(source.split)
    found = _evaluated(trained, source)
    listed = _write(out, trained, source, found, options.mistakes)
    console = Console(highlight=False, soft_wrap=True)
    heading = f"{trained.directory}, step {trained.step}, {found.examples:,} examples of {source.name} {source.split}"
    console.print(escape(f"{heading}: {scores_text(found.metrics)}"))
    if isinstance(found.report, ClassReport):
        for shown in class_tables(found.report):
            console.print(shown)
    if listed and any(mistake.text for mistake in listed):
        console.print(mistakes_table(listed))
    pictures = [name for name in ("confusion.png", "mistakes.png") if (out / name).is_file()]
    console.print(escape(f"see {out}" + (f"/{' and '.join(pictures)}" if pictures else "")))
    return found


def class_tables(report: ClassReport) -> list[Table]:
    """What each class comes to, the worst ones where there are many, and what is confused most, for a terminal."""
    rows = report.rows()
    some = sorted(rows, key=lambda row: np.nan_to_num(row["f1"], nan=2.0))[:MAX_ROWS]
    many = len(rows) > MAX_ROWS
    shown = Table(
        title=f"the {len(some)} of {len(rows)} classes with the lowest F1" if many else None,
        title_justify="left",
    )
    shown.add_column("class")
    for name in ("precision, %", "recall, %", "F1, %", "examples", "predicted"):
        shown.add_column(name, justify="right")
    for row in some if many else rows:
        shares = (_percent(row[name]) for name in ("precision", "recall", "f1"))
        shown.add_row(escape(row["name"]), *shares, f"{row['support']:,}", f"{row['predictions']:,}")
    shown.add_section()
    means = report.means()
    total = f"{int(report.support.sum()):,}"
    shown.add_row("mean", *(_percent(means[name]) for name in ("precision", "recall", "f1")), total, total)
    pairs = report.confused(5)
    if not pairs:
        return [shown]
    confused = Table(title="confused most", title_justify="left")
    for name, justify in (("true", "left"), ("predicted", "left"), ("examples", "right")):
        confused.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for true, predicted, count in pairs:
        confused.add_row(escape(true), escape(predicted), f"{count:,}")
    return [shown, confused]


def find_worst_mistakes(
    trained: Trained, source: Source, found: Evaluation, count: int
) -> tuple[list[Mistake], list[np.ndarray]]:
    """The wrong predictions that the model is surest of, the surest first, and their pictures, where they are such."""
    judged, names = found.judged, trained.class_names or ()
    wrong = np.flatnonzero(find_wrong(found))
    order = wrong[np.argsort(-judged["probability"][wrong], kind="stable")][:count]
    listed, images = [], []
    for index, example in zip(order.tolist(), source.__getitems__(order.tolist()), strict=True):
        label, predicted = (names[judged[name][index]] for name in ("label", "predicted"))
        probabilities = (float(judged[name][index]) for name in ("probability", "of_label"))
        shown = trained.task.show(example)
        text = shown if isinstance(shown, str) else ""
        listed.append(Mistake(index, _id(example, index), label, predicted, *probabilities, text=text))
        images += [shown] if isinstance(shown, np.ndarray) else []
    return listed, images


def find_wrong(found: Evaluation) -> np.ndarray:
    """(examples,) bool: which are of a class and were taken for another."""
    return (found.judged["predicted"] != found.judged["label"]) & (found.judged["label"] >= 0)


def mistakes_table(listed: Sequence[Mistake]) -> Table:
    """The surest mistakes on texts, for a terminal."""
    shown = Table(title="the surest mistakes", title_justify="left")
    for name in ("true", "predicted", "sure, %", "text"):
        shown.add_column(name, justify="right" if "%" in name else "left")
    for mistake in listed[:MAX_ROWS]:
        text = mistake.text if len(mistake.text) <= MAX_LETTERS else f"{mistake.text[:MAX_LETTERS]}..."
        shown.add_row(
            escape(mistake.true), escape(mistake.predicted), _percent(mistake.probability), escape(text)
        )
    return shown


def _evaluated(trained: Trained, source: Source) -> Evaluation:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("evaluating", total=-(-len(source) // trained.recipe.chosen_batch_size))
        return trained.report(source=source, advance=lambda: progress.advance(task))


def _write(out: Path, trained: Trained, source: Source, found: Evaluation, count: int) -> list[Mistake]:
    """Writes all files, and returns the mistakes that are among them."""
    report, about, listed = found.report, {}, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(report, ClassReport):
            listed, images = find_worst_mistakes(trained, source, found, count)
            errors = int(find_wrong(found).sum())
            title = (
                f"{trained.recipe.name} on {source.split}: {100 * report.accuracy:.2f}% of {found.examples:,}"
            )
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
            "run": str(trained.directory), "step": trained.step, "data": source.name, "split": source.split,
            "examples": found.examples, "metrics": dict(found.metrics), **about,
        }  # fmt: skip
        run_directory.write_json(out / "evaluation.json", written)
        return listed
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write in {out} ({reason}): choose another place with {option('out', 'DIR')}"
        ) from error


def _source(trained: Trained, options: EvaluateOptions) -> Source:
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


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.2f}"


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
