"""The directory of a pipeline: whose it is, what of it is there already, and what it replaces."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxaccel.compression.receipts import Receipt, decode_receipts, encode_receipts
from jaxaccel.core import runtime
from jaxaccel.core.files import is_left_over, read_json
from jaxaccel.errors import UserError, option
from jaxaccel.training.directory_swap import Swap
from jaxaccel.training.lock import hold_lock
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import add_defaults, find_changes, find_differences, upgrade
from jaxaccel.training.run_directory import command_line, write_json

RECORD, RECEIPTS = "pipeline.json", "receipts.json"
OLD_RECORD, OLD_KEY = "route.json", "route"
"""What version 0.1.0 called the record, and the steps in it."""
BEGINNING = {RECORD, RECEIPTS, "facts.json", "0-origin.safetensors"}
"""What is there before the first step: nothing that would be a loss."""


def default_directory(origin: Path) -> Path:
    """Where the results of a pipeline from there go: ``runs/ORIGIN-compressed``."""
    return Path("runs") / f"{origin.name if origin.is_dir() else origin.stem}-compressed"


def resume_receipts(
    directory: Path, record: dict[str, Any], training: Recipe, steps: Mapping[str, Any]
) -> list[Receipt]:
    """The receipts that are there, of the same pipeline; options that an older version lacked have their defaults.

    Args:
      directory: of the pipeline.
      record: what its pipeline.json would hold now.
      training: how the model was trained.
      steps: of the pipeline, by name.

    Raises:
      UserError: there is none, or it is another one.
    """
    file = find_record(directory)
    if not file.is_file():
        raise UserError(
            f"nothing to resume in {directory}: there is no {RECORD}; leave out {option('resume', True)}"
        )
    before = read_record(directory)
    now = json.loads(json.dumps({name: value for name, value in record.items() if name != "training"}))
    taken = before.get("pipeline")
    if isinstance(taken, dict):
        before["pipeline"] = {name: add_defaults(step, steps.get(name)) for name, step in taken.items()}
    found = find_differences(now, {name: before.get(name) for name in now})
    trained_before = before.get("training", {})
    if not isinstance(trained_before, dict):
        raise UserError(f"{file} was not written by jaxaccel, or is damaged")
    trained = find_changes(training, upgrade(trained_before))
    found += [(f"training.{path}", value, old) for path, value, old in trained]
    for path, value, old in found:
        raise UserError(
            f"{directory} was begun with {path} = {old}, now it is {value}: resume with the same, or choose "
            f"another {option('run', 'DIR')}"
        )
    try:
        return [decode_receipts(row) for row in read_json(directory / RECEIPTS)["receipts"]]
    except FileNotFoundError:
        return []
    except (UserError, KeyError, TypeError):
        print(f"{directory / RECEIPTS} is damaged: its steps are taken and measured again")
        return []


def find_record(directory: Path) -> Path:
    """Finds the file in which a pipeline's directory says what was asked for, also where version 0.1.0 wrote it."""
    old = directory / OLD_RECORD
    return old if old.is_file() and not (directory / RECORD).is_file() else directory / RECORD


def read_record(directory: Path) -> dict[str, Any]:
    """Reads that file, in today's names.

    Raises:
      UserError: it is damaged.
      OSError: it cannot be read.
    """
    record = read_json(find_record(directory))
    if OLD_KEY in record:
        record["pipeline"] = record.pop(OLD_KEY)
    return record


def check_free(directory: Path, origin: Path, overwrite: bool) -> None:
    """Checks that a pipeline from `origin` may be written to `directory`; nothing is touched.

    Raises:
      UserError: something would be lost.
    """
    if not _names(directory):
        return
    if holds_results(directory) and not overwrite:
        raise UserError(
            f"{directory} holds something already: go on with {option('resume', True)}, replace it with "
            f"{option('overwrite', True)}, or choose another {option('run', 'DIR')}"
        )
    if RECORD not in _names(directory):
        raise UserError(
            f"{directory} is no pipeline of jaxaccel and will not be deleted: choose another {option('run', 'DIR')}"
        )
    if directory.resolve() in origin.resolve().parents:
        raise UserError(
            f"{origin} lies in {directory}, which is to be replaced: choose another {option('run', 'DIR')}"
        )


@contextlib.contextmanager
def claim_directory(directory: Path, origin: Path, *, resume: bool, overwrite: bool) -> Iterator[Swap]:
    """Holds `directory` for a pipeline from `origin`, once it is clear that nothing would be lost.

    What `begin` replaces is deleted when the new pipeline has come to a result, and stands there again if it comes to
    none; if this process is killed, then at the next start.

    Raises:
      UserError: something would be lost, or another process writes there.
    """
    swap = Swap(directory, RECORD, holds_results)
    with hold_lock(directory):
        swap.end()  # what was left by one that was killed
        try:
            if not resume:
                check_free(directory, origin, overwrite)
            yield swap
        finally:
            swap.end()


def begin(swap: Swap, record: dict[str, Any]) -> None:
    """Makes the directory and its pipeline.json; what was there is set aside."""

    def write(directory: Path) -> None:
        written = record | {"command": command_line(), "versions": runtime.versions()}
        write_json(directory / RECORD, written)

    if _names(swap.directory):
        swap.begin(write)
    else:
        swap.directory.mkdir(parents=True, exist_ok=True)
        write(swap.directory)


def holds_results(directory: Path) -> bool:
    """Whether there is anything to lose: a step, or a fine-tuning with a checkpoint, or somebody's files."""
    names = _names(directory)
    runs = {path.parent.name for path in directory.glob("*/recipe.json")}
    saved = {path.parent.parent.name for path in directory.glob("*/checkpoints/*")}
    return bool(names - BEGINNING - (runs - saved)) or (bool(names) and RECORD not in names)


def write_receipts(directory: Path, rows: list[Receipt], record: dict[str, Any]) -> None:
    """Writes receipts.json."""
    device = jax.devices()[0]
    written = {
        "origin": record["origin"],
        "device_kind": device.device_kind,
        "versions": runtime.versions(),
        "receipts": encode_receipts(rows),
    }
    write_json(directory / RECEIPTS, written)


def _names(directory: Path) -> set[str]:
    """What is in `directory`, but for locks and drafts, which a process that was killed may leave."""
    paths = directory.iterdir() if directory.is_dir() else ()
    names = {path.name for path in paths if not is_left_over(path)}
    return names - {OLD_RECORD} | {RECORD} if OLD_RECORD in names else names
