"""The published CIFAR-10 ResNets made smaller along several pipelines, each step with its receipt.

    python experiments/compress_cifar10.py --weights DIR --downloads DIR

takes a published network through each pipeline, on all 10,000 test images, and prints one table. Fine-tuning is
short: `--epochs` passes over the 50,000 training images, on a CPU some minutes. It goes on where it was stopped.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from cifar10 import MEAN, PUBLISHED, STD
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import cli, models
from jaxaccel.compression import (
    FineTune,
    Fold,
    LowRank,
    Pipeline,
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


def followed(name: str, depth: int, steps: dict[str, Step], options: Options) -> list[dict[str, Any]]:
    """The receipts of one pipeline."""
    place = options.run / name.replace(" ", "_").replace("%", "").replace(":", "_").replace("'", "")
    done = ja.compress(
        Pipeline(steps), file_of(depth, options.weights), training(depth, options), run=place,
        resume=(place / "pipeline.json").exists(),
    )  # fmt: skip
    return [dataclasses.asdict(row) for row in done.receipts]


def table(rows: dict[str, Any], title: str) -> Table:
    """Every step of every pipeline; ratios are to the published network."""
    made = Table(title=title, title_justify="left")
    for head in (
        "pipeline",
        "step",
        "accuracy %",
        "MFLOPs",
        "not 0",
        "packed kB",
        "times smaller",
        "ms, one",
        "ms, 128",
    ):
        made.add_column(head, justify="left" if head in ("pipeline", "step") else "right", no_wrap=True)
    for name, found in rows.items():
        first = found["receipts"][0]
        for row in found["receipts"]:
            made.add_row(
                f"ResNet-{found['depth']}: {name}" if row is first else "", row["step"],
                f"{100 * row['scores']['accuracy']:.2f}", f"{row['flops'] / 1e6:.1f}", f"{row['nonzeros']:,}",
                f"{row['packed_bytes'] / 1e3:,.0f}", f"{first['packed_bytes'] / row['packed_bytes']:.1f}",
                f"{row['latency_ms']:.2f}", f"{1000 * row['batch'] / row['throughput']:.0f}",
                end_section=row is found["receipts"][-1],
            )  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/compress_cifar10.py", __doc__ or "", Options, argv)
    runtime.setup()
    known = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else {}
    plans = pipelines(options.epochs, file_of(56, options.weights))
    if unknown := set(options.only) - plans.keys():
        raise ja.UserError(f"no pipeline {min(unknown)!r}: {', '.join(plans)}")
    for name, (depth, steps) in plans.items():
        if options.only and name not in options.only:
            continue
        known[name] = {
            "depth": depth,
            "epochs": options.epochs,
            "receipts": followed(name, depth, steps, options),
        }
        if options.out:
            record = {"versions": runtime.versions(), "device": jax.devices()[0].device_kind, "rows": known}
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    published = ", ".join(f"ResNet-{depth} {PUBLISHED[depth]:.2f}" for depth in (20, 56))
    title = f"CIFAR-10 test, published: {published}; {jax.devices()[0].device_kind}"
    Console(width=132).print(table(known, title))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
