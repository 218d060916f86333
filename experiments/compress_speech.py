"""A recognizer of spoken digits made smaller along several pipelines, each step with its receipt.

    python -m jaxaccel.train spoken_sequences
    python experiments/compress_speech.py --origin runs/spoken_sequences

takes its LSTMs through pipelines, on the 500 sequences of the test split, and prints one table. Nearly all
weights are in the LSTMs, two fifths of them inside a loop over time.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from receipts_table import Plan, follow_plans, print_table

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


def plan_pipelines(options: Options) -> dict[str, Plan]:
    """The pipelines by their names."""
    tune, int8 = FineTune(epochs=options.epochs, rate=0.3), {"int8": Quantize()}
    pruned = dataclasses.replace(tune, sparse=Sparse(method="gradual", sparsity=0.8, every=5, end=0.5))
    small = partial(models.lstm_ctc, width=64, features=64)
    taught = FineTune(epochs=options.student_epochs, rate=1.0, warmup=0.1, teacher="origin")
    steps: dict[str, dict[str, Step]] = {
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
    return {name: Plan("LSTMs", options.origin, some) for name, some in steps.items()}


SCORES = {
    "WER %": lambda scores: f"{100 * scores['wer']:.2f}",
    "CER %": lambda scores: f"{100 * scores['cer']:.2f}",
}


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/compress_speech.py", __doc__ or "", Options, argv)
    runtime.setup()
    rows = follow_plans(
        plan_pipelines(options), options.only, options.run, options.out, epochs=options.epochs
    )
    print_table(rows, f"spoken_sequences, test; {jax.devices()[0].device_kind}", SCORES)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
