"""The directory of a run: made once, never overwritten silently, enough to repeat the run."""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxaccel import runtime, trust
from jaxaccel.errors import UserError
from jaxaccel.files import write_text
from jaxaccel.recipe import Recipe
from jaxaccel.recipe_file import FORMAT, changes, read_record, write
from jaxaccel.user_code import content_at

TEACHER = "teacher"
"""Folder of a run that holds the recipe of the run that was its teacher, with which it goes on when that has gone."""


def prepare(
    directory: Path, recipe: Recipe, *, source: Path | None, resume: bool, overwrite: bool
) -> "Replaced":
    """Makes `directory` and its recipe.json, or checks that what is there belongs to `recipe`.

    With several processes the first one decides, and all raise what it raises.

    Args:
      directory: of the run.
      recipe: the experiment.
      source: the Python file of a recipe of the user's own, of which a copy is kept; None for a shipped one.
      resume: the directory must exist and hold the same recipe.
      overwrite: what is there is set aside, until it is discarded.

    Raises:
      UserError: the directory exists and neither is asked for, its recipe differs, or it cannot be written.
    """
    replaced, trouble = Replaced(directory), ""
    if jax.process_index() == 0:
        try:
            if resume:
                _check_same(directory / "recipe.json", recipe)
            else:
                replaced = _make(directory, recipe, source, overwrite)
        except UserError as error:
            trouble = str(error)
    if trouble := _from_first_process(trouble):
        raise UserError(trouble)
    return replaced


@dataclasses.dataclass(frozen=True)
class Replaced:
    """What stood where a run is being made, until the new one has begun."""

    directory: Path
    aside: Path | None = None

    def discard(self) -> None:
        """The new run has begun: what it replaces goes."""
        if self.aside and self.aside.exists():
            shutil.rmtree(self.aside)

    def put_back(self) -> None:
        """The new run could not begin: what was there stands again. Nothing happens after `discard`."""
        if self.aside and self.aside.exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.aside.rename(self.directory)


def _make(directory: Path, recipe: Recipe, source: Path | None, overwrite: bool) -> Replaced:
    replaced = Replaced(directory)
    if _holds_something(directory):
        if not overwrite:
            raise UserError(
                f"{directory} holds a run already: go on with --resume, replace it with --overwrite, "
                "or choose another --name or --run DIR"
            )
        if not (directory / "recipe.json").exists():  # a wrong --run must not delete somebody's files
            raise UserError(
                f"{directory} is no run of jaxaccel and will not be deleted: choose another --run"
            )
        aside = directory.with_name(f".{directory.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        replaced = Replaced(directory, aside)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if recipe.distill.teacher is not None:
            keep_teacher(recipe.distill.teacher, directory)
        written = write(recipe)
        code = written.code | ({source.stem: content_at(source)} if source else {})
        for name, content in code.items():
            (directory / f"{name}.py").write_bytes(content)
        write_json(
            directory / "recipe.json",
            {
                "format": FORMAT,
                "recipe": written.values,
                "modules": list(code),
                "command": command(),
                "versions": runtime.versions(),
                "git_commit": runtime.git_commit(source.parent if source else Path(__file__).parent),
                "device_kind": jax.devices()[0].device_kind,
                "device_count": jax.device_count(),
            },
        )
        _sign(directory, list(code))
    except OSError as error:
        replaced.put_back()
        reason = error.strerror or error
        raise UserError(
            f"cannot write in {directory} ({reason}): choose another place with --run DIR"
        ) from error
    return replaced


def keep_teacher(run: Path, directory: Path) -> None:
    """Copies into `directory` what tells how the model of `run` is made, where that is a run: not its weights."""
    if (run / "recipe.json").is_file():
        modules = [x for x in read_record(run / "recipe.json")[0]["modules"] if (run / f"{x}.py").is_file()]
        there = directory / TEACHER
        there.mkdir(exist_ok=True)
        for name in ("recipe.json", *(f"{module}.py" for module in modules)):
            shutil.copyfile(run / name, there / name)
        _sign(there, modules)


def _sign(directory: Path, modules: Sequence[str]) -> None:
    """Marks a run that this process wrote as the user's own, with the code beside it."""
    names = ["recipe.json", *(f"{name}.py" for name in modules)]
    trust.sign(directory, {name: (directory / name).read_bytes() for name in names})


def _from_first_process(text: str) -> str:
    """`text` of the first process, on all of them."""
    if jax.process_count() == 1:
        return text
    room = np.zeros(1024, np.uint8)
    data = text.encode()[: room.size]
    room[: len(data)] = list(data)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(room))).rstrip(b"\0").decode(errors="ignore")


def command() -> list[str] | None:
    """The words of the command line that runs in this process; None in a notebook or somebody's program."""
    program, package = Path(sys.argv[0]), Path(__file__).parent
    if package not in program.parents:
        return None
    parts = program.relative_to(package).with_suffix("").parts
    module = ".".join(("jaxaccel", *(part for part in parts if part != "__main__")))
    return ["python", "-m", module, *sys.argv[1:]]


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, whole or not at all; what is no finite number becomes null, since JSON has no NaN."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _holds_something(directory: Path) -> bool:
    """Whether there is anything to lose: a run that failed before its first metrics leaves nothing."""
    metrics = directory / "metrics.jsonl"
    if (directory / "recipe.json").exists():
        return any(directory.glob("checkpoints/*")) or (metrics.exists() and metrics.stat().st_size > 0)
    return directory.is_dir() and any(not path.name.endswith(".draft") for path in directory.iterdir())


def _check_same(record: Path, recipe: Recipe) -> None:
    if not record.exists():
        raise UserError(f"nothing to resume in {record.parent}: there is no recipe.json; leave out --resume")
    known, _ = read_record(record)
    for path, value, old in changes(recipe, known["recipe"], known.get("format", 0)):
        raise UserError(
            f"{record.parent} was trained with {path} = {old}, this recipe has {value}: resume with the "
            "same recipe, or start a new run from its weights with --init-from"
        )
