"""The command ``jaxaccel``: ``jaxaccel train digits`` is ``python -m jaxaccel.train digits``."""

import runpy
import sys
from collections.abc import Sequence

import jaxaccel
from jaxaccel.core.call_text import suggest_nearest

COMMANDS = {
    "train": "trains a model: a recipe that comes with jaxaccel, or one of your own",
    "evaluate": "evaluates a trained model: each class, what is confused, the worst mistakes",
    "predict": "predicts pictures or texts with a trained model, one line of JSON each",
    "compress": "makes a trained model smaller and faster, with a receipt for each step",
    "export": "writes a trained model as a bundle, which runs without its source",
    "verify": "checks that a bundle is as it was signed",
    "serve": "serves models over HTTP and gRPC, by the Open Inference Protocol v2",
    "doctor": "shows devices, versions and rates, and what is wrong if something is",
}
"""Each is a module of that name, with the same arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command by its name; returns the exit code of what it does itself."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in COMMANDS:
        sys.argv = [sys.argv[0], *words[1:]]
        runpy.run_module(f"jaxaccel.{name}", run_name="__main__", alter_sys=True)
        return 0
    if name == "--version":
        print(f"jaxaccel {jaxaccel.__version__}")
        return 0
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    print(
        f"error: no command {name!r}{suggest_nearest(name, [*COMMANDS, '--version'])} (--help shows them)",
        file=sys.stderr,
    )
    return 2


def _usage() -> str:
    lines = [f"  jaxaccel {name:9} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: jaxaccel COMMAND [ARGUMENTS]", "", *lines, "", "jaxaccel COMMAND --help shows the arguments of one; "
         "jaxaccel --version its version."]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
