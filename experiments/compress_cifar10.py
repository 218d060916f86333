"""The published CIFAR-10 ResNets made smaller along several pipelines, each step with its receipt.

    python experiments/compress_cifar10.py --weights DIR --downloads DIR

takes a published network through each pipeline, on all 10,000 test images, and prints one table. Fine-tuning is
short: `--epochs` passes over the 50,000 training images, on a CPU some minutes. It goes on where it was stopped.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from cifar10 import MEAN, PUBLISHED, STD
from receipts_table import check_names, follow_pipeline, print_table, read_rows, write_rows

import jaxaccel as ja
from jaxaccel import cli, models
from jaxaccel.compression import (
    FineTune,
    Fold,
    LowRank,
    Prune,
    Quantize,
    RemoveChannels,
    Share,
    Step,
)
from jaxaccel.core import runtime
from jaxaccel.optim import Sparse


@dataclasses.dataclass(frozen=True)
class Options:
    """Where networks and images are, and how long to fine-tune."""

    weights: Path
    """Directory with resnet20-*.th and resnet56-*.th of akamaster/pytorch_resnet_cifar10."""
    downloads: Path | None = None
    """Directory with the files of CIFAR-10; not needed once the data set is prepared."""
    epochs: float = 1.0
    """Passes over the training split in each fine-tuning."""
    only: tuple[str, ...] = ()
    """Names of pipelines; all by default."""
    train_split: str = "train"
    eval_split: str = "test"
    run: Path = Path("runs/compress_cifar10")
    """Directory of all the pipelines."""
    out: Path | None = None
    """Also write the rows here, as JSON."""


def pipelines(epochs: float, teacher: Path) -> dict[str, tuple[int, dict[str, Step]]]:
    """By name: the depth of the network, and the steps."""

    def pruned(**how: Any) -> FineTune:
        # Pruned early: what is left needs the rest of a short training.
        sparse = Sparse(method="gradual", scope="erk", every=10, end=0.4, **how)
        return FineTune(epochs=epochs, rate=0.5, sparse=sparse, teacher="origin")

    tune, ends = FineTune(epochs=epochs), {"fold": Fold(), "int8": Quantize()}
    taught = FineTune(epochs=epochs, teacher="origin")
    return {
        "int8": (20, ends),
        "80% sparse": (20, {"prune": pruned(sparsity=0.8), **ends}),
        "90% sparse": (20, {"prune": pruned(sparsity=0.9), **ends}),
        "2:4 sparse": (20, {"prune": Prune(None, "2:4", where=BUT_THE_FIRST), "fine_tune": tune, **ends}),
        "low rank": (20, {"low_rank": LowRank(flops=0.5), "fine_tune": FineTune(epochs=epochs, rate=0.2), **ends}),
        "half the channels' work": (
            56,
            {
                "channels": RemoveChannels(flops=0.5, multiple=8),
                "fine_tune": dataclasses.replace(taught, rate=0.2),
                **ends,
            },
        ),
        "deep compression": (
            56,
            {
                "prune": dataclasses.replace(pruned(sparsity=0.865), epochs=2 * epochs, rate=0.2),
                "share": Share(bits=4),
                "fine_tune": dataclasses.replace(taught, epochs=epochs / 4, rate=0.02),
            },
        ),
        "fine-tuned alone": (20, {"fine_tune": tune}),
        "taught by ResNet-56": (
            20, {"fine_tune": dataclasses.replace(tune, teacher=str(teacher), teacher_model=models.resnet56)},
        ),
    }  # fmt: skip


BUT_THE_FIRST = ("stages/**/kernel",)
"""The first convolution has three inputs, which four do not divide; the last layer has a thousandth of the weights."""


def training(depth: int, options: Options) -> ja.Recipe:
    """How the network was trained, but for what fine-tuning says itself."""
    recipe = ja.load_recipe("cifar10_resnet20")
    return dataclasses.replace(
        recipe, name=f"resnet{depth}", model=getattr(models, f"resnet{depth}"),
        task=dataclasses.replace(recipe.task, mean=MEAN, std=STD),
        data=dataclasses.replace(
            recipe.data, downloads=options.downloads, train_split=options.train_split, eval_split=options.eval_split
        ),
    )  # fmt: skip


def file_of(depth: int, weights: Path) -> Path:
    """The published network of that depth."""
    files = sorted(weights.glob(f"resnet{depth}-*.th"))
    if not files:
        raise ja.UserError(
            f"no resnet{depth}-*.th in {weights}: take it from akamaster/pytorch_resnet_cifar10"
        )
    return files[0]


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/compress_cifar10.py", __doc__ or "", Options, argv)
    runtime.setup()
    known, plans = read_rows(options.out), pipelines(options.epochs, file_of(56, options.weights))
    check_names(options.only, list(plans))
    for name, (depth, steps) in plans.items():
        if options.only and name not in options.only:
            continue
        origin, how = file_of(depth, options.weights), training(depth, options)
        receipts = follow_pipeline(name, steps, origin, how, options.run)
        known[name] = {"of": f"ResNet-{depth}", "epochs": options.epochs, "receipts": receipts}
        write_rows(options.out, known)
    published = ", ".join(f"ResNet-{depth} {PUBLISHED[depth]:.2f}" for depth in (20, 56))
    title = f"CIFAR-10 test, published: {published}; {jax.devices()[0].device_kind}"
    print_table(known, title, {"accuracy %": lambda scores: f"{100 * scores['accuracy']:.2f}"})
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
