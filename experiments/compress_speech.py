"""A recognizer of spoken digits made smaller along several pipelines, each step with its receipt.

    python -m jaxaccel.train spoken_sequences
    python experiments/compress_speech.py --origin runs/spoken_sequences

takes its LSTMs through pipelines, on the 500 sequences of the test split, and prints one table. Nearly all
weights are in the LSTMs, two fifths of them inside a loop over time.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from receipts_table import check_names, follow_pipeline, print_table, read_rows, write_rows

from jaxaccel import cli, models
from jaxaccel.compression import FineTune, LowRank, Quantize, Step, Student
from jaxaccel.core import runtime
from jaxaccel.optim import Sparse


@dataclasses.dataclass(frozen=True)
class Options:
    """Which run to compress, and how long to fine-tune."""

    origin: Path
    """Run of the recipe `spoken_sequences`."""
    epochs: float = 1.0
    """Passes over the training split in each fine-tuning."""
    student_epochs: float = 5.0
    """Passes over the training split in which a smaller network learns from the first one."""
    only: tuple[str, ...] = ()
    """Names of pipelines; all by default."""
    run: Path = Path("runs/compress_speech")
    """Directory of all the pipelines."""
    out: Path | None = None
    """Also write the rows here, as JSON."""


def pipelines(options: Options) -> dict[str, dict[str, Step]]:
    """The steps of each pipeline by its name."""
    tune, int8 = FineTune(epochs=options.epochs, rate=0.3), {"int8": Quantize()}
    pruned = dataclasses.replace(tune, sparse=Sparse(method="gradual", sparsity=0.8, every=5, end=0.5))
    small = partial(models.lstm_ctc, width=64, features=64)
    taught = FineTune(epochs=options.student_epochs, rate=1.0, warmup=0.1, teacher="origin")
    return {
        "int8": int8,
        "int8, dynamic": {"int8": Quantize(activations="dynamic")},
        "int8 aware": {"fine_tune": dataclasses.replace(tune, precision="int8-qat"), **int8},
        "80% sparse": {"prune": pruned, **int8},
        "low rank": {"low_rank": LowRank(flops=0.5), "fine_tune": tune, **int8},
        "fine-tuned alone": {"fine_tune": tune},
        "half as wide, taught": {"student": Student(model=small), "fine_tune": taught, **int8},
        "half as wide, alone": {
            "student": Student(model=small),
            "fine_tune": dataclasses.replace(taught, teacher=""),
            **int8,
        },
    }


SCORES = {
    "WER %": lambda scores: f"{100 * scores['wer']:.2f}",
    "CER %": lambda scores: f"{100 * scores['cer']:.2f}",
}


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/compress_speech.py", __doc__ or "", Options, argv)
    runtime.setup()
    known: dict[str, Mapping[str, Any]] = read_rows(options.out)
    plans = pipelines(options)
    check_names(options.only, list(plans))
    for name, steps in plans.items():
        if options.only and name not in options.only:
            continue
        receipts = follow_pipeline(name, steps, options.origin, None, options.run)
        known[name] = {"of": "LSTMs", "epochs": options.epochs, "receipts": receipts}
        write_rows(options.out, known)
    print_table(known, f"spoken_sequences, test; {jax.devices()[0].device_kind}", SCORES)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
