"""How long each optimizer takes to 99% on MNIST and to 92% on Fashion-MNIST.

    python experiments/optimizers.py --downloads DIR --out experiments/results/optimizers.json

Trains the shipped recipe's network with each optimizer, five seeds at once as one program, the rate falling by a
cosine after a warm-up (constant for the schedule-free one), and looks when each seed first passes the mark on the test
images. With --tune N the learning rate is the best of three for one seed: that of the list, N times as much and an Nth
of it. Seconds are those steps times what a step of one seed takes alone, which is measured when all have trained, one
after the other: --no-timed leaves that for a later call, on a quiet machine. What is in the file already is not trained
again. One table, one picture of each data set.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rows
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import cli
from jaxaccel.core import runtime
from jaxaccel.optim import Optimizer, Schedule

MARKS = {"mnist": (0.99, 2.0, True), "fashion_mnist": (0.92, 4.0, False)}
"""The accuracy to reach, the epochs of a run, and whether images are augmented as the recipe does: so few
epochs of Fashion-MNIST end higher on images as they are."""

OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": Optimizer("sgd", 0.1, args={"momentum": 0.9, "nesterov": 1}, weight_decay=5e-4),
    "SGD, SAM": Optimizer("sgd", 0.1, args={"momentum": 0.9, "nesterov": 1}, weight_decay=5e-4, sam=0.05),
    "SGD, Lookahead": Optimizer(
        "sgd", 0.2, args={"momentum": 0.9, "nesterov": 1}, weight_decay=5e-4, lookahead=5
    ),
    "AdamW": Optimizer("adamw", 2e-3, weight_decay=0.05),
    "Lion": Optimizer("lion", 3e-4, weight_decay=0.3),
    "LARS": Optimizer("lars", 2.0, weight_decay=5e-4),
    "LAMB": Optimizer("lamb", 1e-2, weight_decay=0.05),
    "Muon": Optimizer("muon", 2e-2, weight_decay=0.05),
    "Sophia": Optimizer("sophia", 2e-3, weight_decay=0.05),
    "Prodigy": Optimizer("prodigy", 1.0, weight_decay=0.01),
    "schedule-free AdamW": Optimizer("schedule_free_adamw", 5e-3, weight_decay=0.05),
    "Shampoo": Optimizer("shampoo", 2e-3, weight_decay=0.05),
    "SOAP": Optimizer("soap", 2e-3, weight_decay=0.05),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, and how much."""

    downloads: Path | None = None
    """Directory with one folder of original files a data set, mnist/ and fashion_mnist/; not needed once prepared."""
    data: tuple[str, ...] = tuple(MARKS)
    seeds: int = 5
    epochs: float = 0.0
    """Of each run; 0 takes 2 and 4."""
    only: tuple[str, ...] = ()
    """Names of the optimizers to try; all by default."""
    tune: float = 0.0
    """Try N times and an Nth of each learning rate first; 0 takes those of the list."""
    timed: bool = True
    """Time a step of each optimizer that has trained and has no time yet."""
    out: Path | None = None
    """Also write the rows here, as JSON, and a picture of each data set beside it."""


def recipe(options: Options, name: str, optimizer: Optimizer) -> ja.Recipe:
    """The shipped recipe with another optimizer, tested four times an epoch."""
    shipped = ja.load_recipe(name)
    place = options.downloads / name if options.downloads else None
    free = optimizer.name.startswith("schedule_free")
    _, epochs, augmented = MARKS[name]
    return dataclasses.replace(
        shipped, name=f"{name}_{optimizer.name}", data=dataclasses.replace(shipped.data, downloads=place),
        augment=shipped.augment if augmented else (), optimizer=optimizer,
        schedule=Schedule("constant" if free else "cosine", warmup=0.05), epochs=options.epochs or epochs,
        eval_every=0.25, sweep={"seed": tuple(range(options.seeds))},
    )  # fmt: skip


def tuned(options: Options, name: str, optimizer: Optimizer) -> Optimizer:
    """`optimizer` with the learning rate, of three at once, that ends best for one seed."""
    rates = [optimizer.learning_rate * options.tune**power for power in (-1, 0, 1)]
    one = dataclasses.replace(
        recipe(options, name, optimizer), sweep={"optimizer.learning_rate": tuple(rates)}
    )
    summary, _ = rows.trained(one)
    best = max(summary["replicas"], key=lambda row: row["accuracy"])
    return dataclasses.replace(optimizer, learning_rate=best["optimizer.learning_rate"])


def first_passes(evaluations: list[dict[str, Any]], mark: float, seeds: int) -> list[int | None]:
    """The step at which each seed's accuracy is first at `mark`; None where it never is."""

    def passes(i: int) -> list[int]:
        return [row["step"] for row in evaluations if row.get(f"accuracy/{i}", row["accuracy"]) >= mark]

    return [min(passes(i), default=None) for i in range(seeds)]


def measured(options: Options, name: str, optimizer: Optimizer) -> dict[str, Any]:
    """One row: steps to the mark of each seed, and where it ended."""
    summary, evaluations = rows.trained(recipe(options, name, optimizer))
    return {
        "learning_rate": optimizer.learning_rate,
        "steps": first_passes(evaluations, MARKS[name][0], options.seeds),
        "accuracy": [100 * row["accuracy"] for row in summary["replicas"]],
    }


def seconds_of_a_step(options: Options, name: str, optimizer: Optimizer) -> float:
    """What a step takes when one seed trains alone, over half an epoch."""
    half = dataclasses.replace(recipe(options, name, optimizer), sweep={}, epochs=0.5, eval_every=0.5)
    summary, _ = rows.trained(half)
    return half.chosen_batch_size / summary["examples_per_second"]


def times(row: dict[str, Any]) -> list[float]:
    """Seconds to the mark, of the seeds that got there."""
    return [step * row.get("step_seconds", float("nan")) for step in row["steps"] if step is not None]


def reached(label: str, row: dict[str, Any]) -> str:
    """The optimizer's name, and how many seeds got to the mark where not all did."""
    there = len(times(row))
    return label if there == len(row["steps"]) else f"{label} ({there} of {len(row['steps'])})"


def shown(found: dict[str, Any], name: str) -> Table:
    """The rows of one data set, the fastest first."""
    table = Table(title=f"{name}: to {MARKS[name][0]:.0%} of the test images")
    table.add_column("optimizer")
    for heading in (
        "learning rate",
        "seconds",
        "steps",
        "ms a step",
        "seeds that got there",
        "accuracy at the end, %",
    ):
        table.add_column(heading, justify="right")
    for optimizer, row in sorted(
        found.items(), key=lambda item: rows.spread(times(item[1]) or [float("inf")])
    ):
        there = [step for step in row["steps"] if step is not None]
        cells = ["–", "–"]
        if there:
            cells = [f"{rows.spread(times(row))[0]:.1f} ± {rows.spread(times(row))[1]:.1f}",
                     f"{rows.spread(there)[0]:.0f} ± {rows.spread(there)[1]:.0f}"]  # fmt: skip
        mean, deviation = rows.spread(row["accuracy"])
        table.add_row(
            optimizer, f"{row['learning_rate']:.2g}", *cells, f"{1000 * row.get('step_seconds', float('nan')):.1f}",
            f"{len(there)} of {len(row['steps'])}", f"{mean:.2f} ± {deviation:.2f}",
        )  # fmt: skip
    return table


def draw(found: dict[str, Any], name: str, options: Options) -> None:
    """The picture of one data set, where anything got to the mark and was timed."""
    timed = {label: row for label, row in found.items() if "step_seconds" in row and times(row)}
    if options.out and timed:
        bars = [(reached(label, row), *rows.spread(times(row))) for label, row in timed.items()]
        title = f"{name}: seconds to {MARKS[name][0]:.0%}, {options.seeds} seeds"
        picture = options.out.with_name(f"{options.out.stem}-{name}.png")
        rows.bars(picture, title, "seconds of training on this machine", bars)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/optimizers.py", __doc__ or "", Options, argv)
    runtime.setup()
    made_with = {"seeds": options.seeds, "epochs": options.epochs, "tune": options.tune}
    if unknown := {*options.only} - set(OPTIMIZERS) | {*options.data} - set(MARKS):
        raise ja.UserError(f"no {min(unknown)!r}: choose of {', '.join(map(repr, [*OPTIMIZERS, *MARKS]))}")
    found = rows.known(options.out, made_with)
    for name in options.data:
        cells = found.setdefault(name, {})
        for label in options.only or OPTIMIZERS:
            if label not in cells:
                optimizer = OPTIMIZERS[label]
                optimizer = tuned(options, name, optimizer) if options.tune else optimizer
                cells[label] = measured(options, name, optimizer)
                rows.write(options.out, made_with, found)
    for name in options.data:
        for label, row in found[name].items():
            if options.timed and "step_seconds" not in row:
                optimizer = dataclasses.replace(OPTIMIZERS[label], learning_rate=row["learning_rate"])
                row["step_seconds"] = seconds_of_a_step(options, name, optimizer)
                rows.write(options.out, made_with, found)
        Console().print(shown(found[name], name))
        draw(found[name], name, options)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
