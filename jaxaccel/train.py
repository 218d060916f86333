"""Trains a model: ``python -m jaxaccel.train [RECIPE] [--overrides]``, or ``ja.train(recipe)``.

Without a recipe it trains `digits`, whose data comes with the package. --list shows the recipes, and a path
to a Python file with a function `recipe()` is a recipe too. Every value of a recipe is a flag.
"""

import sys
from collections.abc import Sequence

from jaxaccel import cli
from jaxaccel.distributed import MeshShape


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    read = cli.read("python -m jaxaccel.train", __doc__ or "", argv)
    if read is None:
        return 0
    # What is imported here takes a second, which nobody should pay for a mistyped flag.
    from jaxaccel.core import runtime
    from jaxaccel.training.loggers import find_maker
    from jaxaccel.training.loop import train
    from jaxaccel.training.sweep import read_points

    recipe, options, source = read
    if recipe.mesh == MeshShape():
        runtime.divide_cpu(len(read_points(recipe).get("seed", (recipe.seed,))))
    train(
        recipe, run=options.run, resume=options.resume, overwrite=options.overwrite,
        init_from=options.init_from, source=source, trust=options.trust,
        loggers=[find_maker(name) for name in options.logger],
    )  # fmt: skip
    return 0


cli.make_callable(__name__, "jaxaccel.training.loop", "train")

if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
