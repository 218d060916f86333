"""Tokens a second of a trained translator on real captions, in several precisions, greedily and with a beam.

    python -m jaxaccel.train multi30k_en_de
    python experiments/translation_speed.py --origin runs/multi30k_en_de

translates the first captions of the test split one by one and in batches, in turns, round by round. Texts in and tokens
out: making tokens of texts is counted, and compiling is not. Sentences are of their own lengths, so a batch goes on
until its longest translation ends. int8 is dynamic, `ja.int8` of the run's model with weights from `ja.quantize`.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import Ge
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import cli
from jaxaccel.core import runtime
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.deployment.trained import Trained


@dataclasses.dataclass(frozen=True)
class Options:
    """Which run translates, and how much."""

    origin: Path
    """Run of the recipe `multi30k_en_de`."""
    count: Annotated[int, Ge(1)] = 96
    """Captions that are translated."""
    batches: tuple[int, ...] = (1, 32)
    """Captions at a time."""
    beams: tuple[int, ...] = (1, 5)
    """Hypotheses of a search; 1 is greedy."""
    rounds: Annotated[int, Ge(1)] = 5
    """Rounds in which each precision takes a turn."""
    out: Path | None = None
    """Also write the rows here, as JSON."""


def make_precisions(trained: Trained) -> dict[str, Trained]:
    """The same model in several precisions, by name; the first one is float32."""
    weights = ja.quantize(trained.params)
    transforms: Mapping[str, tuple[Callable[..., Any], Any]] = {
        "float32": (lambda f: f, trained.params),
        "bfloat16": (ja.bfloat16, trained.params),
        "int8": (ja.int8, weights),
        "int8, weights only": (partial(ja.int8, activations="none"), weights),
    }
    return {
        name: dataclasses.replace(trained, run=transform(trained.call), params=params)
        for name, (transform, params) in transforms.items()
    }


def read_texts(trained: Trained, count: int) -> list[str]:
    """The first texts of the split that the run is evaluated on."""
    source, task = trained.source(), trained.task
    assert isinstance(task, ja.tasks.Translation)
    examples = source.__getitems__(range(min(count, len(source))))
    return [example[task.source].item().decode() for example in examples]


def measure(trained: Trained, texts: Sequence[str], batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each precision: seconds, tokens a second, and how many times as fast as float32 it is."""
    models = make_precisions(trained)
    tokens = {
        name: int((model.predict(texts, batch=batch)["tokens"][:, 0] >= 0).sum())
        for name, model in models.items()
    }
    turns = {
        name: run_repeatedly(partial(model.predict, texts, batch=batch)) for name, model in models.items()
    }
    times = time_in_turns(turns, rounds=rounds)
    return [
        {
            "precision": name, "batch": batch, "beam": getattr(trained.task, "beam", 1), "texts": len(texts),
            "tokens": tokens[name], "seconds": times.median(name), "all_seconds": list(times.rounds[name]),
            "tokens_per_second": tokens[name] / times.median(name),
            "times_as_fast": times.gain(name, "float32").ratio, "noise": times.gain(name, "float32").noise,
        }
        for name in models
    ]  # fmt: skip


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Every precision, batch and beam."""
    table = Table(title=title, title_justify="left")
    for heading in ("precision", "batch", "beam", "tokens/s", "× float32"):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for row in rows:
        ratio = f"{row['times_as_fast']:.2f} ± {row['noise']:.2f}" if row["precision"] != "float32" else ""
        table.add_row(
            row["precision"], str(row["batch"]), str(row["beam"]), f"{row['tokens_per_second']:,.0f}", ratio
        )
    Console(width=100).print(table)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/translation_speed.py", __doc__ or "", Options, argv)
    runtime.setup()
    trained = ja.load(options.origin)
    texts, rows, device = read_texts(trained, options.count), [], jax.devices()[0].device_kind
    for beam in options.beams:
        for batch in options.batches:
            rows += measure(trained.with_task(beam=beam), texts, batch, options.rounds)
            if options.out:
                record = {"versions": runtime.versions(), "device": device, "rows": rows}
                options.out.write_text(json.dumps(record, indent=1) + "\n")
    print_table(rows, f"Multi30k, {len(texts)} captions; {device}")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
