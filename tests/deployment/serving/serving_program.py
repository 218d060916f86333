"""``python -m jaxaccel.serve`` with engines of `serving_engines` in the place of bundles: a program for tests."""

import os
import sys

from serving_engines import Describer, Echo, Rows

from jaxaccel import cli
from jaxaccel.deployment.serving.datatypes import DTYPES
from jaxaccel.deployment.serving.sources import Opened
from jaxaccel.errors import UserError
from jaxaccel.serve import main


def load(path, engine):
    """``rows`` and ``echo``; ``slow`` takes a second a batch."""
    if path.name not in ("rows", "slow", "echo"):
        raise UserError(f"{path} is no bundle")
    if path.name == "echo":
        return Opened("echo", Echo(*map(str, DTYPES.values())))
    return Opened(
        path.name, Rows(seconds=float(os.environ.get("SECONDS", "1")) * (path.name == "slow")), Describer()
    )


def verify(path, key):
    """Says that ``rows`` alone is signed."""
    if path.name != "rows":
        raise UserError(f"{path} is not signed by {key}")


if __name__ == "__main__":
    cli.run(lambda words: main(words, load, verify), sys.argv[1:])
