"""The directory of a run: made once, never overwritten silently, enough to repeat the run."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax

from jaxaccel import runtime
from jaxaccel.errors import UserError
from jaxaccel.recipe import MAY_DIFFER_ON_RESUME, Recipe, differences, to_json


def prepare(directory: Path, recipe: Recipe, *, source: Path | None, resume: bool, overwrite: bool) -> None:
    """Makes `directory` and its recipe.json, or checks that what is there belongs to `recipe`.

    Args:
      directory: of the run.
      recipe: the experiment.
      source: the Python file of a recipe of the user's own, of which a copy is kept; None for a shipped one.
      resume: the directory must exist and hold the same recipe.
      overwrite: what is there goes away.

    Raises:
      UserError: the directory exists and neither is asked for, or its recipe differs.
      OSError: it cannot be written.
    """
    record = directory / "recipe.json"
    if resume:
        _check_same(record, recipe)
        return
    if _holds_something(directory):
        if not overwrite:
            raise UserError(
                f"{directory} holds a run already: go on with --resume, replace it with --overwrite, "
                "or choose another --name or --run DIR"
            )
        if not record.exists():  # a wrong --run must not delete somebody's files
            raise UserError(
                f"{directory} is no run of jaxaccel and will not be deleted: choose another --run"
            )
        if jax.process_index() == 0:
            shutil.rmtree(directory)
    if jax.process_index():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "recipe.tmp").touch()
    except OSError as error:
        raise UserError(
            f"cannot write in {directory} ({error.strerror}): choose another place with --run DIR"
        ) from error
    if source is not None:
        shutil.copyfile(source, directory / "recipe.py")
    write_json(
        record,
        {
            "recipe": to_json(recipe),
            "command": command(),
            "versions": runtime.versions(),
            "git_commit": runtime.git_commit(source.parent if source else Path(__file__).parent),
            "device_kind": jax.devices()[0].device_kind,
            "device_count": jax.device_count(),
        },
    )


def _holds_something(directory: Path) -> bool:
    """Whether there is anything to lose: a run that failed before its first metrics leaves nothing."""
    metrics = directory / "metrics.jsonl"
    if (directory / "recipe.json").exists():
        return any(directory.glob("checkpoints/*")) or (metrics.exists() and metrics.stat().st_size > 0)
    return directory.is_dir() and any(path.name != "recipe.tmp" for path in directory.iterdir())


def command() -> list[str] | None:
    """The words of the command line that runs in this process; None in a notebook or somebody's program."""
    own = Path(sys.argv[0]).parent == Path(__file__).parent
    return ["python", "-m", f"jaxaccel.{Path(sys.argv[0]).stem}", *sys.argv[1:]] if own else None


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _check_same(record: Path, recipe: Recipe) -> None:
    if not record.exists():
        raise UserError(f"nothing to resume in {record.parent}: there is no recipe.json; leave out --resume")
    before = json.loads(record.read_text(encoding="utf-8"))["recipe"]
    now = json.loads(json.dumps(to_json(recipe)))
    for path, value, old in differences(now, before):
        if not path.startswith(MAY_DIFFER_ON_RESUME):
            raise UserError(
                f"{record.parent} was trained with {path} = {old}, this recipe has {value}: resume with the "
                "same recipe, or start a new run from its weights with --fork-from"
            )
