"""Classifiers of texts made smaller along several pipelines, each step with its receipt.

    python -m jaxaccel.train clinc
    python -m jaxaccel.train minilm --init-from minilm_l6 --data.name clinc_oos --data.eval-split test+test_oos \
        --task.label intent_name --task.unknown oos --name minilm_clinc
    python experiments/compress_texts.py --text-cnn runs/clinc --minilm runs/minilm_clinc

takes both through pipelines, on the 4,500 requests of CLINC150's test split, and prints one table. Most of a TextCNN
is its table of embeddings, which computes nothing; so pipelines say whether they change that table too.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from receipts_table import Plan, follow_plans, print_table

from jaxaccel import cli
from jaxaccel.compression import FineTune, LowRank, Prune, Quantize
from jaxaccel.core import runtime
from jaxaccel.optim import Sparse

EVERYTHING = "**/{kernel,embedding}"
"""All weights of products, and the embeddings."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs to compress, and how long to fine-tune."""

    text_cnn: Path
    """Run of the recipe `clinc`."""
    minilm: Path
    """Run of MiniLM on the same data."""
    epochs: float = 4.0
    """Passes over the training split in each fine-tuning."""
    only: tuple[str, ...] = ()
    """Names of pipelines; all by default."""
    run: Path = Path("runs/compress_texts")
    """Directory of all the pipelines."""
    out: Path | None = None
    """Also write the rows here, as JSON."""


def plan_pipelines(options: Options) -> dict[str, Plan]:
    """The pipelines by their names."""
    tune, int8 = FineTune(epochs=options.epochs, rate=0.3), {"int8": Quantize()}
    pruned = dataclasses.replace(
        tune, sparse=Sparse(method="gradual", sparsity=0.8, every=10, end=0.5, where=EVERYTHING)
    )
    of_text_cnn = {
        "int8": int8,
        "80% sparse": {"prune": pruned, **int8},
        "low rank": {"low_rank": LowRank(flops=0.5), "fine_tune": tune, **int8},
        "low rank, embeddings": {
            "low_rank": LowRank(rank=32, where=(EVERYTHING,)),
            "fine_tune": tune,
            **int8,
        },
        "fine-tuned alone": {"fine_tune": tune},
        "taught by MiniLM": {
            "fine_tune": dataclasses.replace(tune, rate=1.0, teacher=str(options.minilm)),
            **int8,
        },
    }
    of_minilm = {
        "MiniLM, int8": int8,
        "MiniLM, half pruned": {"prune": Prune(0.5, criterion="wanda"), **int8},
        "MiniLM, low rank": {"low_rank": LowRank(flops=0.7, examples=512), **int8},
    }
    return {name: Plan("TextCNN", options.text_cnn, steps) for name, steps in of_text_cnn.items()} | {
        name: Plan("MiniLM", options.minilm, steps) for name, steps in of_minilm.items()
    }


SCORES = {
    "in scope %": lambda scores: f"{100 * scores['accuracy']:.2f}",
    "others noticed %": lambda scores: f"{100 * scores['unknown_recall']:.1f}",
    "kept %": lambda scores: f"{100 * scores['kept']:.1f}",
}


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/compress_texts.py", __doc__ or "", Options, argv)
    runtime.setup()
    rows = follow_plans(
        plan_pipelines(options), options.only, options.run, options.out, epochs=options.epochs
    )
    print_table(rows, f"CLINC150 test; {jax.devices()[0].device_kind}", SCORES)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
