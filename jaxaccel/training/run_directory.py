"""The directory of a run: made once, never overwritten silently, enough to repeat the run."""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxaccel.core import runtime
from jaxaccel.core.files import is_left_over, write_text
from jaxaccel.core.user_code import read_content_at
from jaxaccel.errors import UserError, option
from jaxaccel.training import trust
from jaxaccel.training.directory_swap import Swap
from jaxaccel.training.facts import FILE as FACTS
from jaxaccel.training.lock import hold_lock
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import FORMAT, find_changes, read_recipe_file, write
from jaxaccel.training.saved_checkpoints import CHECKPOINTS, list_steps

PACKAGE = Path(__file__).parents[1]
RECORD = "recipe.json"
TEACHER = "teacher"
"""Folder of a run that holds the recipe of the run that was its teacher, with which it goes on when that has gone."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """The directory of a run that trains, which nobody else writes to."""

    swap: Swap
    recipe: Recipe
    write: Callable[[Recipe, Path], None] | None
    """Fills a new directory; None where the run goes on."""

    def begin(self, recipe: Recipe | None = None) -> None:
        """Makes the directory and its recipe.json; what was there is set aside.

        Args:
          recipe: what is written, where something in it was decided after the claim.

        Raises:
          UserError: it cannot be written.
        """

        def make() -> None:
            if self.write is None:
                return
            fill = functools.partial(self.write, recipe or self.recipe)
            if _holds_something(self.swap.directory):
                self.swap.begin(fill)
            else:
                self.swap.directory.mkdir(parents=True, exist_ok=True)
                fill(self.swap.directory)

        _in_first_process(make, self.swap.directory)

    def settle(self) -> None:
        """Deletes what was replaced, once there is a checkpoint."""
        if jax.process_index() == 0:
            self.swap.settle()


@contextlib.contextmanager
def claim_run(
    directory: Path,
    recipe: Recipe,
    *,
    source: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Claim]:
    """Holds `directory` for a run of `recipe`, once it is clear that nothing would be lost.

    Nothing in it changes before `Claim.begin`. What that replaces is deleted when the new run has a checkpoint, and
    stands there again if it comes to none; if this process is killed, then at the next start. With several processes
    the first one decides, and all raise what it raises.

    Args:
      directory: of the run.
      recipe: the experiment.
      source: the Python file of a recipe of the user's own, of which a copy is kept; None for a shipped one.
      resume: the directory must exist and hold the same recipe.
      overwrite: what is there may be replaced.

    Raises:
      UserError: the directory exists and neither is asked for, its recipe differs, it cannot be written, or another
        process writes there.
    """
    swap = Swap(directory, RECORD, lambda there: bool(list_steps(there / CHECKPOINTS)))
    with contextlib.ExitStack() as leave:

        def claim() -> None:
            leave.enter_context(hold_lock(directory))
            leave.callback(swap.end)
            swap.end()  # what was left by one that was killed
            if resume:
                check_same(directory, recipe)
            else:
                _check_free(directory, overwrite)

        _in_first_process(claim, directory)
        yield Claim(swap, recipe, None if resume else lambda recipe, there: _write(there, recipe, source))


def _write(directory: Path, recipe: Recipe, source: Path | None) -> None:
    if recipe.distill.teacher is not None:
        keep_teacher(recipe.distill.teacher, directory)
    written = write(recipe)
    code = written.code | ({source.stem: read_content_at(source)} if source else {})
    for name, content in code.items():
        (directory / f"{name}.py").write_bytes(content)
    write_json(
        directory / RECORD,
        {
            "format": FORMAT,
            "recipe": written.values,
            "modules": list(code),
            "command": command_line(),
            "versions": runtime.versions(),
            "git_commit": runtime.git_commit(source.parent if source else PACKAGE),
            "device_kind": jax.devices()[0].device_kind,
            "device_count": jax.device_count(),
        },
    )
    _sign(directory, list(code))


def keep_teacher(run: Path, directory: Path) -> None:
    """Copies into `directory` what tells how the model of `run` is made, where that is a run: not its weights."""
    if (run / RECORD).is_file():
        modules = [x for x in read_recipe_file(run / RECORD)[0]["modules"] if (run / f"{x}.py").is_file()]
        there = directory / TEACHER
        there.mkdir(exist_ok=True)
        for name in (RECORD, *(f"{module}.py" for module in modules)):
            shutil.copyfile(run / name, there / name)
        if (run / FACTS).is_file():
            shutil.copyfile(run / FACTS, there / FACTS)
        _sign(there, modules)


def _sign(directory: Path, modules: Sequence[str]) -> None:
    """Marks a run that this process wrote as the user's own, with the code beside it."""
    names = [RECORD, *(f"{name}.py" for name in modules)]
    trust.sign(directory, {name: (directory / name).read_bytes() for name in names})


def _in_first_process(action: Callable[[], None], directory: Path) -> None:
    """Calls `action` in the first process; all processes raise the mistake that it raises."""
    trouble, disk = "", None
    if jax.process_index() == 0:
        try:
            action()
        except UserError as error:
            trouble = error.message
        except OSError as error:
            why = error.strerror or error
            trouble = f"cannot write in {directory} ({why}): choose another place with {option('run', 'DIR')}"
            disk = error if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) else None
    if trouble := _from_first_process(trouble):
        raise disk or UserError(trouble)


def _from_first_process(text: str) -> str:
    """`text` of the first process, on all of them."""
    if jax.process_count() == 1:
        return text
    room = np.zeros(1024, np.uint8)
    data = text.encode()[: room.size]
    room[: len(data)] = list(data)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(room))).rstrip(b"\0").decode(errors="ignore")


def command_line() -> list[str] | None:
    """The words of the command line that runs in this process; None in a notebook or somebody's program."""
    program, package = Path(sys.argv[0]), PACKAGE
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


def _check_free(directory: Path, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another {option('run', 'DIR')}")
    if not _holds_something(directory):
        return
    if not overwrite:
        raise UserError(
            f"{directory} holds a run already: go on with {option('resume', True)}, replace it with "
            f"{option('overwrite', True)}, or choose another {option('name')} or {option('run', 'DIR')}"
        )
    if not (directory / RECORD).is_file():  # a wrong run must not delete somebody's files
        raise UserError(
            f"{directory} is no run of jaxaccel and will not be deleted: choose another {option('run', 'DIR')}"
        )


def _holds_something(directory: Path) -> bool:
    """Whether there is anything to lose: a run that failed before its first metrics leaves nothing."""
    metrics = directory / "metrics.jsonl"
    if (directory / RECORD).exists():
        return any(directory.glob(f"{CHECKPOINTS}/*")) or (metrics.exists() and metrics.stat().st_size > 0)
    return directory.is_dir() and not all(is_left_over(path) for path in directory.iterdir())


def read_record(directory: Path) -> dict[str, Any]:
    """What the recipe.json of a run that is to go on holds.

    Raises:
      UserError: there is none, or it is damaged.
    """
    record = directory / RECORD
    if not record.is_file():
        raise UserError(
            f"nothing to resume in {directory}: there is no {RECORD}; leave out {option('resume', True)}"
        )
    return read_recipe_file(record)[0]


def check_same(directory: Path, recipe: Recipe) -> None:
    """Checks that the run in `directory` was trained by `recipe`, but for what may differ.

    Raises:
      UserError: it was not, or there is no run, or it does not say.
    """
    known = read_record(directory)
    for path, value, old in find_changes(recipe, known["recipe"], known.get("format", 0)):
        raise UserError(
            f"{directory} was trained with {path} = {old}, this recipe has {value}: resume with the "
            f"same recipe, or start a new run from its weights with {option('init_from', 'RUN')}"
        )
