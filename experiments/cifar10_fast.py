"""How long the recipe `cifar10_fast` takes to 94% of CIFAR-10, or how far it comes in the time there is.

    python experiments/cifar10_fast.py --downloads DIR --runs 10 --out experiments/results/cifar10_fast.json

Trains the recipe once for each seed, one after the other, and looks after each epoch. Seconds are those of training:
compiling and evaluating do not count, as in the published protocol (Jordan 2024, arXiv:2404.00498), whose network takes
2.6 seconds of an A100 to 94.0% on average. On a CPU a narrower network comes further in as much time:

    python experiments/cifar10_fast.py --downloads DIR --widths 64 128 128 --batch-size 500 --epochs 6 --tta flip

What is in the file already is not trained again. One table, one picture.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import rows
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import cli, models
from jaxaccel.core import runtime
from jaxaccel.tasks import ImageClassification
from jaxaccel.training import run_log


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, and how often."""

    downloads: Path | None = None
    """Directory with the archive of CIFAR-10; not needed once the data set is prepared."""
    runs: int = 1
    """Seeds, from 0 on."""
    seconds: float = math.inf
    """Begin no further run after this many."""
    epochs: float = 0.0
    """Of each run; 0 takes the recipe's."""
    batch_size: int = 0
    """0 takes the recipe's."""
    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of the three stages."""
    tta: Literal["none", "flip", "shift", "multicrop"] = "multicrop"
    """How test images are seen."""
    mark: float = 0.94
    """The accuracy to reach."""
    out: Path | None = None
    """Also write the rows here, as JSON, and a picture beside it."""


def recipe(options: Options, seed: int) -> ja.Recipe:
    """The shipped recipe with these options."""
    shipped = ja.load_recipe("cifar10_fast")
    assert isinstance(shipped.task, ImageClassification)
    return dataclasses.replace(
        shipped, seed=seed, model=functools.partial(models.cifar_fast, widths=options.widths),
        task=dataclasses.replace(shipped.task, tta=options.tta),
        data=dataclasses.replace(shipped.data, downloads=options.downloads),
        epochs=options.epochs or shipped.epochs, batch_size=options.batch_size or shipped.batch_size,
    )  # fmt: skip


def curve(log: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float]]:
    """Seconds of training, epochs and accuracy (%) at each evaluation of a run's log."""
    seconds, done, points = 0.0, 0, []
    for row in log:
        if row["kind"] == "train":
            seconds += (row["step"] - done) * row["step_seconds"]
            done = row["step"]
        else:
            points.append((seconds, row["epoch"], 100 * row["accuracy"]))
    return points


def reached(points: Sequence[Sequence[float]], mark: float) -> float | None:
    """The seconds at the first evaluation that is at `mark`; None where none is."""
    return next((seconds for seconds, _, accuracy in points if accuracy >= 100 * mark), None)


def draw(path: Path, title: str, found: Mapping[str, Any], mark: float) -> None:
    """Accuracy over seconds, one line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=120)
    axis = figure.subplots()
    for seed, row in found.items():
        seconds, _, accuracies = zip(*row["curve"], strict=True)
        axis.plot(seconds, accuracies, "o-", markersize=4, label=f"seed {seed}")
    axis.axhline(100 * mark, color="#d9711c", lw=1.2)
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds of training on this machine, without compiling and evaluating")
    axis.set_ylabel("test accuracy, %")
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/cifar10_fast.py", __doc__ or "", Options, argv)
    runtime.setup()
    settings = dataclasses.asdict(options) | {"widths": [*options.widths]}
    made_with = {name: settings[name] for name in ("epochs", "batch_size", "widths", "tta", "mark")}
    found = rows.known(options.out, made_with)
    start = monotonic()
    for seed in map(str, range(options.runs)):
        if seed not in found and monotonic() - start < options.seconds:
            with rows.folder() as place:
                summary = ja.train(recipe(options, int(seed)), run=place / "run").summary
                points = curve(run_log.read(place / "run"))
            if not summary["finished"]:
                break  # it was told to stop
            kept = ("examples_per_second", "compile_seconds", "seconds", "parameters", "device_kind")
            found[seed] = {"curve": points, **{name: summary[name] for name in kept}}
            rows.write(options.out, made_with, found)
    table = Table(title=f"cifar10_fast, widths {options.widths}: to {options.mark:.0%} of the test images")
    for heading in (
        "seed",
        "seconds of training",
        "accuracy at the end, %",
        f"seconds to {options.mark:.0%}",
    ):
        table.add_column(heading, justify="right")
    for seed, row in found.items():
        seconds, _, accuracy = row["curve"][-1]
        there = reached(row["curve"], options.mark)
        table.add_row(seed, f"{seconds:.1f}", f"{accuracy:.2f}", "–" if there is None else f"{there:.1f}")
    ends = [row["curve"][-1] for row in found.values()]
    if len(ends) > 1:
        (time, _), (accuracy, deviation) = (rows.spread([end[i] for end in ends]) for i in (0, 2))
        marks = [reached(row["curve"], options.mark) for row in found.values()]
        there = [seconds for seconds in marks if seconds is not None]
        to_mark = f"{rows.spread(there)[0]:.1f} ({len(there)} of {len(marks)})" if there else "–"
        table.add_row("mean", f"{time:.1f}", f"{accuracy:.2f} ± {deviation:.2f}", to_mark)
    Console().print(table)
    if options.out:
        title = f"CIFAR-10, cifar_fast{options.widths}, {len(found)} run{'s' * (len(found) > 1)}"
        draw(options.out.with_suffix(".png"), title, found, options.mark)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
