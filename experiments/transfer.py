"""What a network that has learned CIFAR-10 is worth on 1,000 images of Fashion-MNIST, against one that starts anew.

    python experiments/transfer.py --weights DIR --downloads DIR --out experiments/results/transfer.json

Every way of training has the same steps, images and augmentation, and seeds that differ in nothing else. Prints one
table: test accuracy, how much is trained, what the optimizer keeps. What is in the file already is not trained again.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rows
from cifar10 import network
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import augment, cli, models
from jaxaccel.core import runtime
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer, Schedule

FIRST = "{stem,stages/0,stages/1}/**"
"""Two thirds of the layers and a quarter of the parameters."""
SGD = Optimizer(name="sgd", learning_rate=0.02, args={"momentum": 0.9}, weight_decay=1e-4)
WAYS: dict[str, tuple[bool, Optimizer]] = {
    "from scratch": (False, dataclasses.replace(SGD, learning_rate=0.1)),
    "all of it": (True, SGD),
    "learning rates by depth": (True, dataclasses.replace(SGD, learning_rate=0.05, layer_decay=0.85)),
    "from the last stage down": (
        True,
        dataclasses.replace(SGD, unfreeze={"stages/1/**": 0.25, "stages/0/**": 0.5, "stem/**": 0.5}),
    ),
    "the last stage and the head": (True, dataclasses.replace(SGD, freeze=(FIRST,))),
}
"""By name: whether it starts from the pretrained weights, and what moves them."""
PROBE = "linear probe on cached features"


@dataclasses.dataclass(frozen=True)
class Options:
    """Where things are, and how much to train."""

    weights: Path
    """Directory with resnet20-*.th of akamaster/pytorch_resnet_cifar10."""
    downloads: Path | None = None
    """Directory with the original files of Fashion-MNIST; not needed once the data set is prepared."""
    images: int = 1000
    epochs: float = 15
    seeds: int = 2
    out: Path | None = None
    """Also write the rows here, as JSON."""


def recipe(options: Options, optimizer: Optimizer) -> ja.Recipe:
    """ResNet-20 on the first images, tested at the end."""
    return ja.Recipe(
        name="transfer", model=models.resnet20, epochs=options.epochs, batch_size=64, eval_every=options.epochs,
        task=ja.tasks.ImageClassification(mean=(0.449,), std=(0.226,)),  # the gray of what it was trained on
        data=ja.training.Data(name="fashion_mnist", downloads=options.downloads,
                              train_split=f"train[:{options.images}]"),
        augment=(augment.horizontal_flip,), optimizer=optimizer, schedule=Schedule("cosine", warmup=0.05),
        sweep={"seed": tuple(range(options.seeds))},
    )  # fmt: skip


def pretrained(options: Options, file: Path) -> dict[str, Any]:
    """The published network for gray images, with a head of chance, packed to `file`."""
    _, variables = network(20, options.weights)
    shape = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
    own, _ = as_model(models.resnet20, {"classes": 10, "channels": 1, "image_size": 28}, (shape,)).init(
        jax.random.key(0)
    )
    params = variables["params"] | {"head": own["head"]}
    stem = params["stem"] | {"conv": {"kernel": params["stem"]["conv"]["kernel"].sum(2, keepdims=True)}}
    params |= {"stem": stem}  # the three colors of a gray image are the same
    ja.params.save({"params": params, "model_state": variables["state"]}, file)
    return {"params": params, "state": variables["state"]}


def trained(options: Options, optimizer: Optimizer, start: Path | None, place: Path) -> dict[str, Any]:
    """One row."""
    result = ja.train(recipe(options, optimizer), run=place, init_from=start, overwrite=True)
    state = result.state
    moved = jax.tree.leaves(state.opt_state)
    return {
        "accuracy": [100 * row["accuracy"] for row in result.summary["replicas"]],
        "optimizer_bytes": sum(x.nbytes for x in moved) // options.seeds,
        "examples_per_second": result.summary["examples_per_second"],
    }


def probed(options: Options, variables: dict[str, Any]) -> dict[str, Any]:
    """The row of a linear classifier on what the network makes of each image."""
    shape = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
    model = as_model(models.resnet20, {"classes": 10, "channels": 1, "image_size": 28}, (shape,))
    task = recipe(options, SGD).task

    def f(params: Any, x: jax.Array) -> jax.Array:
        return model.apply(params, variables["state"], x, key=jax.random.key(0), train=False)[0]

    seen = jax.jit(ja.transforms.features(f, ["head/kernel"], of="input"))

    def cached(split: str) -> tuple[np.ndarray, np.ndarray]:
        source = ja.data.open("fashion_mnist", split, downloads=options.downloads)
        examples = source.__getitems__(range(len(source)))
        images = np.stack([example["image"] for example in examples])
        parts = [
            np.asarray(seen(variables["params"], *task.inputs({"image": x}))[1]["head/kernel"])
            for x in np.split(images, max(1, len(images) // 500))
        ]
        return np.concatenate(parts), np.array([example["label"] for example in examples])

    features, labels = cached(f"train[:{options.images}]")
    head = ja.models.linear_probe(features, labels, 10)
    features, labels = cached("test")
    right = np.argmax(features @ head["kernel"] + head["bias"], -1) == labels
    return {"accuracy": [100 * float(right.mean())], "optimizer_bytes": 0, "examples_per_second": None}


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/transfer.py", __doc__ or "", Options, argv)
    runtime.setup()
    made_with = {"images": options.images, "epochs": options.epochs, "seeds": options.seeds}
    found = rows.known(options.out, made_with)
    with rows.folder() as place:
        file = place / "pretrained.safetensors"
        variables = pretrained(options, file)
        for name, (starts, optimizer) in WAYS.items():
            if name not in found:
                found[name] = trained(options, optimizer, file if starts else None, place / "run")
                rows.write(options.out, made_with, found)
    if PROBE not in found:
        found[PROBE] = probed(options, variables)
        rows.write(options.out, made_with, found)
    base = rows.spread(found["from scratch"]["accuracy"])[0]
    table = Table(title=f"ResNet-20 on {options.images:,} images of Fashion-MNIST, {options.epochs:g} epochs")
    table.add_column("trained")
    for heading in ("accuracy %", "± over seeds", "gain", "optimizer kB"):
        table.add_column(heading, justify="right")
    for name, row in found.items():
        mean, deviation = rows.spread(row["accuracy"])
        table.add_row(
            name,
            f"{mean:.2f}",
            f"{deviation:.2f}",
            f"{mean - base:+.2f}",
            f"{row['optimizer_bytes'] / 1e3:,.0f}",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
