"""The lines by which a run tells what it does."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxaccel import rundir
from jaxaccel.recipe import Recipe


def heading(
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    directory: Path,
    examples: int,
    params: Any,
    replicas: int,
    done: int,
) -> str:
    """What is trained, on what, and where it goes."""
    what = f"resuming {recipe.name} at step {done}" if done else f"training {recipe.name}"
    count = sum(x.size for x in jax.tree.leaves(params)) // replicas
    what += f" {replicas} times at once" if replicas > 1 else ""
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}{f' ({axes})' if axes else ''}"
    learns = recipe.distill
    by = f"; teacher: {learns.teacher}, temperature {learns.temperature:g}, soft {learns.soft:g}"
    return (
        f"{what}: {examples:,} examples of {recipe.data.name}, {count:,} parameters, {devices}, "
        f"into {directory}{by if learns.teacher else ''}"
    )


def scores_text(scores: Mapping[str, float]) -> str:
    """Metrics on one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items()) or "not evaluated"


def replicas_text(rows: Sequence[Mapping[str, float]], metric: str, best: int) -> str:
    """A table of what each replica was trained with and what came of it, the best one marked."""
    varied = [name for name in rows[0] if len({row[name] for row in rows}) > 1 or name == metric]
    shown = {name: ".4f" if name in (metric, "loss") else ".6g" for name in varied}
    cells = [[name.rpartition(".")[2] for name in varied]]
    cells += [[format(row[name], shown[name]) for name in varied] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(varied))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    marks = ["", *("  best" if i == best else "" for i in range(len(rows)))]
    return "\n".join(line + mark for line, mark in zip(lines, marks, strict=True))


def again() -> str:
    """What to type to go on: the same words as before, and --resume; in Python the call, of whatever it was."""
    command = rundir.command()
    if command is None:
        return "the same call with resume=True"
    return shlex.join([*(word for word in command if word not in ("--resume", "--overwrite")), "--resume"])
