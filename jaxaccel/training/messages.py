"""The lines by which a run tells what it does."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxaccel.tasks.metrics import score_text
from jaxaccel.training import run_directory
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import warn_unreadable
from jaxaccel.training.run_setup import RunSetup
from jaxaccel.training.warm_start import Start


def opening_lines(
    setup: RunSetup, start: Start, done: int, init_from: Path | str | None, chosen: str = ""
) -> list[str]:
    """Says what is trained, on what, where it goes, and what else is to be known before it begins."""
    told = (
        heading_lines(setup, done),
        chosen,
        *setup.unsplit,
        setup.plan.note(setup.recipe),
        start.said(Path(init_from)) if init_from else "",
        warn_unreadable(setup.recipe),
    )
    return [line for line in told if line]


def heading_lines(setup: RunSetup, done: int) -> str:
    """Says what is trained, on what, and where it goes."""
    recipe, mesh, count = setup.recipe, setup.mesh, setup.trainer.count
    what = f"resuming {recipe.name} at step {done}" if done else f"training {recipe.name}"
    parameters = sum(x.size for x in jax.tree.leaves(setup.state.params)) // count
    what += f" {count} times at once" if count > 1 else ""
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}{f' ({axes})' if axes else ''}"
    learns = recipe.distill
    by = f"; teacher: {learns.teacher}, temperature {learns.temperature:g}, soft {learns.soft:g}"
    return (
        f"{what}: {len(setup.problem.splits.train):,} examples of {recipe.data.name}, {parameters:,} parameters, "
        f"{devices}, into {setup.directory}{by if learns.teacher else ''}"
    )


def scores_text(scores: Mapping[str, float | None]) -> str:
    """Metrics on one line; None is one that JSON could not hold."""
    return "  ".join(f"{name} {score_text(value)}" for name, value in scores.items()) or "not evaluated"


def replicas_text(
    rows: Sequence[Mapping[str, float]], scores: Sequence[Mapping[str, float]], metric: str, best: int
) -> str:
    """A table of what each replica was trained with and what came of it, the best one marked.

    Args:
      rows: numbers of the recipe and metrics of each replica.
      scores: the metrics alone.
      metric: the headline, which is shown in any case; all else where it differs.
      best: which replica is marked.
    """
    names = [name for name in rows[0] if all(name in row for row in rows)]
    varied = [name for name in names if len({row[name] for row in rows}) > 1 or name == metric]
    cells = [[name if name in scores[0] else name.rpartition(".")[2] for name in varied]]
    cells += [
        [score_text(row[name]) if name in scores[0] else f"{row[name]:.6g}" for name in varied]
        for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(varied))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    marks = ["", *("  best" if i == best else "" for i in range(len(rows)))]
    return "\n".join(line + mark for line, mark in zip(lines, marks, strict=True))


def early_end_text(recipe: Recipe, step: int, steps: int, best: int | None) -> str:
    """Why a run ended before its last step."""
    known = "" if best is None else f"; the best checkpoint is that of step {best}"
    return (
        f"stopped early at step {step} of {steps}: {recipe.task.metric} got no better in {recipe.patience} "
        f"evaluations{known}"
    )


def resume_command() -> str:
    """What to type to go on: the same words as before, and --resume; in Python the call, of whatever it was."""
    command = run_directory.command_line()
    if command is None:
        return "the same call with resume=True"
    return shlex.join([*(word for word in command if word not in ("--resume", "--overwrite")), "--resume"])
