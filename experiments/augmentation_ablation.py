"""Which augmentation helps on Fashion-MNIST with 5,000 training images, and how much.

    python experiments/augmentation_ablation.py --downloads DIR --out experiments/results/augmentation_ablation.json

Trains the recipe `fashion_mnist` on the first 5,000 images with one augmentation at a time, and with none: five seeds
at once as one program each. Prints one table of test accuracies and draws it. What is in the file already is not
trained again.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import rows
from rich.console import Console
from rich.table import Table

import jaxaccel as ja
from jaxaccel import augment, cli
from jaxaccel.core import runtime

AUGMENTATIONS: dict[str, tuple[Callable, ...]] = {
    "none": (),
    "horizontal flip": (augment.horizontal_flip,),
    "pad and crop 2": (partial(augment.pad_and_crop, padding=2),),
    "flip + pad and crop 2": (augment.horizontal_flip, partial(augment.pad_and_crop, padding=2)),
    "rotate 10°": (partial(augment.rotate, rotation=10.0),),
    "scale 0.9–1.1": (partial(augment.scale, scale=(0.9, 1.1)),),
    "translate 7%": (partial(augment.translate, translation=0.07),),
    "shear 10°": (partial(augment.shear, shear=0.18),),
    "affine, all four": (
        partial(augment.rotate, rotation=10.0),
        partial(augment.scale, scale=(0.9, 1.1)),
        partial(augment.shear, shear=0.18),
        partial(augment.translate, translation=0.07),
    ),
    "elastic": (partial(augment.elastic, displacement=1.0),),
    "brightness and contrast": (partial(augment.color_jitter, brightness=0.3, contrast=0.3),),
    "Gaussian noise": (partial(augment.gaussian_noise, strength=0.1),),
    "cutout 8": (partial(augment.cutout, size=8),),
    "random erasing": (augment.random_erasing,),
    "mixup 0.2": (partial(augment.mixup, alpha=0.2),),
    "cutmix 1": (partial(augment.cutmix, alpha=1.0),),
    "RandAugment": (augment.rand_augment,),
    "TrivialAugment": (augment.trivial_augment,),
    "flip + crop + cutout": (
        augment.horizontal_flip,
        partial(augment.pad_and_crop, padding=2),
        partial(augment.cutout, size=8),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to train."""

    downloads: Path | None = None
    """Directory with the original files; not needed once the data set is prepared."""
    images: int = 5000
    epochs: float = 15
    seeds: int = 5
    only: tuple[str, ...] = ()
    """Names of the augmentations to try; all by default."""
    out: Path | None = None
    """Also write the rows here, as JSON, and a picture beside it."""


def recipe(options: Options, chosen: tuple[Callable, ...]) -> ja.Recipe:
    """`fashion_mnist` on fewer images, several seeds at once, tested at the end."""
    shipped = ja.load_recipe("fashion_mnist")
    data = dataclasses.replace(
        shipped.data, train_split=f"train[:{options.images}]", downloads=options.downloads, feed="resident"
    )
    return dataclasses.replace(
        shipped, name="ablation", data=data, augment=chosen, epochs=options.epochs, eval_every=options.epochs,
        sweep={"seed": tuple(range(options.seeds))},
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/augmentation_ablation.py", __doc__ or "", Options, argv)
    runtime.setup()
    made_with = {"images": options.images, "epochs": options.epochs, "seeds": options.seeds}
    found = rows.known(options.out, made_with)
    if unknown := set(options.only) - set(AUGMENTATIONS):
        raise ja.UserError(f"no augmentation {', '.join(unknown)}: choose of {', '.join(AUGMENTATIONS)}")
    for name in options.only or AUGMENTATIONS:
        if name not in found:
            summary, _ = rows.trained(recipe(options, AUGMENTATIONS[name]))
            accuracies = [100 * row["accuracy"] for row in summary["replicas"]]
            found[name] = {"accuracy": accuracies, "examples_per_second": summary["examples_per_second"]}
            rows.write(options.out, made_with, found)
    means = {name: rows.spread(row["accuracy"]) for name, row in found.items()}
    base = means["none"][0] if "none" in means else float("nan")
    table = Table(title=f"Fashion-MNIST, {options.images:,} training images, {options.epochs:g} epochs")
    table.add_column("augmentation")
    for heading in ("accuracy %", "± over seeds", "gain"):
        table.add_column(heading, justify="right")
    for name, (mean, deviation) in sorted(means.items(), key=lambda item: -item[1][0]):
        table.add_row(name, f"{mean:.2f}", f"{deviation:.2f}", f"{mean - base:+.2f}")
    Console().print(table)
    if options.out:
        title = f"Fashion-MNIST with {options.images:,} training images, {options.seeds} seeds"
        picture = [(name, *value) for name, value in means.items()]
        rows.bars(
            options.out.with_suffix(".png"), title, "test accuracy, %; the line is without any", picture, base
        )
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
