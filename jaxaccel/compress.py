"""From a trained model to a smaller one: ``python -m jaxaccel.compress ORIGIN --recipe NAME [--overrides]``.

ORIGIN is the directory of a run, or a file of weights together with --like RECIPE, the recipe that trained them.
--list shows the recipes, and a path to a Python file with a function `pipeline()` is one too. Every step's options
are flags under its name, and those of the training that it came from are under --training.
"""

import dataclasses
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxaccel import cli
from jaxaccel.compression.loop import compress
from jaxaccel.compression.pipeline import Pipeline, list_pipelines, load
from jaxaccel.compression.training_steps import NOT_TAKEN
from jaxaccel.core.options import Count, Options
from jaxaccel.errors import UserError, option
from jaxaccel.training.function_names import allow_own_names
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import load as load_training

DEFAULT = "prune_and_int8"


@dataclasses.dataclass(frozen=True)
class PipelineOptions(Options):
    """Where results go, and how they are measured."""

    run: Path | None = None
    """Write the pipeline to this directory [default: runs/ORIGIN-compressed]."""
    resume: bool = False
    """Go on after the last step that has its receipt."""
    overwrite: bool = False
    """Replace what is in that directory."""
    batch: Count = 128
    """Put this many examples into each batch of the evaluation and of the receipts' throughput."""
    trust: bool = False
    """Execute code that the run, or a teacher's, brings along, also where somebody else wrote it."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    words = list(argv)
    if "--list" in words:
        for name, first in list_pipelines().items():
            print(f"{name:18} {first}")
        return 0
    named, like = _taken(words, "--recipe") or DEFAULT, _taken(words, "--like")
    origin = Path(words.pop(0)) if words and not words[0].startswith("-") else None
    pipeline, module = load(named)
    asked = {"-h", "--help"} & set(words)
    if origin is None and not asked:
        raise UserError(
            "name a run or a file of weights: python -m jaxaccel.compress runs/digits (--help shows all)"
        )
    known = like or (
        str(origin) if origin and (origin / "recipe.json").exists() else "digits" if asked else None
    )
    loaded = load_training(known, trust="--trust" in words) if known else None
    training = loaded.recipe if loaded else None
    with allow_own_names(loaded.definitions if loaded else dict):
        command = _parsed(
            pipeline, training, f"{__doc__}\n\nRecipe {named}: {(module.__doc__ or '').strip()}", words
        )
    options = command.options
    if training is not None:
        _check_taken(training, command.training)
    steps = {name: getattr(command, name) for name in pipeline.steps}
    assert origin is not None
    try:
        compress(
            Pipeline(steps), origin, getattr(command, "training", None), run=options.run, resume=options.resume,
            overwrite=options.overwrite, batch=options.batch, trust=options.trust,
        )  # fmt: skip
    except UserError as error:
        raise error.renamed(lambda path: path if path.partition(".")[0] in steps else _flag(path)) from error
    return 0


def _flag(path: str) -> str:
    """What an option of `compress`, or of the training, is called on this command line."""
    if path == "training":
        return "like"
    of_training = {field.name for field in dataclasses.fields(Recipe)}
    return f"training.{path}" if path.partition(".")[0] in of_training else path


def _check_taken(known: Recipe, asked: Recipe) -> None:
    """Checks that nothing is asked of the training that no step would take.

    Raises:
      UserError: something is.
    """
    for name in NOT_TAKEN:
        field = operator.attrgetter(name)
        if field(asked) != field(known):
            raise UserError(
                f"{option(f'training.{name}')} changes nothing: a fine-tuning on the way has flags of its own, "
                "and keeps no averages (--help shows them)"
            )


def _taken(words: list[str], flag: str) -> str | None:
    """The value of a flag, which goes from `words`."""
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 == len(words):
                raise UserError(f"{flag} needs a name (--list shows them)")
            value = words[i + 1]
            del words[i : i + 2]
            return value
        if word.startswith(f"{flag}="):
            del words[i]
            return word.partition("=")[2]
    return None


def _parsed(pipeline: Pipeline, training: Recipe | None, description: str, words: Sequence[str]) -> Any:
    """A dataclass with a field for each step, one for the training where it is known, and the options."""
    default: dict[str, Any] = {
        **pipeline.steps,
        **({"training": training} if training else {}),
        "options": PipelineOptions(),
    }
    unnamed = Annotated[PipelineOptions, tyro.conf.arg(name="")]
    kinds = [(name, unnamed if name == "options" else type(value)) for name, value in default.items()]
    made = dataclasses.make_dataclass("Command", kinds, frozen=True)
    return cli.parse_options("python -m jaxaccel.compress ORIGIN", description, made(**default), words)


cli.make_callable(__name__, "jaxaccel.compression.loop", "compress")

if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
