"""``python -m jaxaccel.compress``: see `jaxaccel.route.command`."""

import sys

from jaxaccel import cli
from jaxaccel.route.command import main

if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
