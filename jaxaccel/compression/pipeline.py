"""A pipeline as data, from a file: which steps, in which order."""

import dataclasses
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxaccel.compression import recipes
from jaxaccel.compression.step import Step
from jaxaccel.compression.steps import Fold, LowRank, Quantize, RemoveChannels, Share
from jaxaccel.compression.training_steps import FineTune, Student
from jaxaccel.core.options import Options
from jaxaccel.core.user_code import call, load_file
from jaxaccel.errors import UserError
from jaxaccel.training.recipe_file import import_shipped, to_json

NOT_AFTER: Mapping[type[Step], tuple[tuple[type[Step], ...], str]] = {
    RemoveChannels: ((LowRank, Share, Fold, Quantize), "channels are removed from dense weights"),
    FineTune: ((Fold, Quantize), "what was folded or quantized is not trained any more"),
    Fold: ((Share, Quantize), "only weights in floating point are folded"),
    Quantize: ((Share,), "weights that share the values of a codebook are not quantized"),
}
"""What a step cannot come after, and why: it would be told only then, and training may take hours."""


@dataclasses.dataclass(frozen=True)
class Pipeline(Options):
    """Named steps, taken one after another."""

    steps: Mapping[str, Step]
    """Steps by name, taken in this order; names are letters, digits and underscores."""

    def check_values(self) -> None:
        """Checks the names, of which files are made."""
        for name, step in self.steps.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise UserError(f"a pipeline maps names such as fine_tune to steps, got {name!r}: {step!r}")
        if not self.steps:
            raise UserError("a pipeline needs at least one step")
        before: dict[str, Step] = {}
        for name, step in self.steps.items():
            _check_after(name, step, before)
            before = {name: step} if isinstance(step, Student) else before | {name: step}

    def as_json(self) -> dict[str, Any]:
        """The steps as plain values, by name."""
        return {name: {"kind": type(step).__name__, **to_json(step)} for name, step in self.steps.items()}


def _check_after(name: str, step: Step, before: Mapping[str, Step]) -> None:
    for kind, (ends, why) in NOT_AFTER.items():
        for earlier, other in before.items():
            if isinstance(step, kind) and isinstance(other, ends):
                raise UserError(
                    f"{name} cannot come after {earlier}: {why}; put it before, or leave out one of them"
                )


def list_pipelines() -> dict[str, str]:
    """The pipelines that come with jaxaccel and the first line of each one's docstring."""
    found = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
    return {name: (import_shipped(name, recipes).__doc__ or "").strip().splitlines()[0] for name in found}


def load_pipeline(name: str) -> Pipeline:
    """The pipeline of that name, or of the Python file at that path, whose ``pipeline()`` makes it.

    Raises:
      UserError: there is none, or the file defines no `pipeline()` that returns a `Pipeline`.
    """
    return load(name)[0]


def load(name: str) -> tuple[Pipeline, Any]:
    """As `load_pipeline`, with the module that holds the pipeline."""
    module = load_file(Path(name)) if name.endswith(".py") else import_shipped(name, recipes)
    made = call(module, "pipeline", name)
    if not isinstance(made, Pipeline):
        raise UserError(f"{name} must define pipeline() -> jaxaccel.compression.Pipeline")
    return made, module
