"""The directory of a route: whose it is, what of it is there already, and what it replaces."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax

from jaxaccel import runtime
from jaxaccel.errors import UserError
from jaxaccel.recipe import MAY_DIFFER_ON_RESUME, differences
from jaxaccel.route.receipts import Receipt, as_json, from_json
from jaxaccel.rundir import Replaced, command, write_json

BEGINNING = {"route.json", "receipts.json", "0-origin.safetensors"}
"""What is there before the first step: nothing that would be a loss."""
MAY_DIFFER = tuple(f"training.{name}" for name in MAY_DIFFER_ON_RESUME)
"""What changes how receipts and fine-tunings are computed, but not what."""


def default(origin: Path) -> Path:
    """Where a route from there leads: ``runs/ORIGIN-compressed``."""
    return Path("runs") / f"{origin.name if origin.is_dir() else origin.stem}-compressed"


def resumed(directory: Path, record: dict[str, Any]) -> list[Receipt]:
    """The receipts that are there already, of the same route.

    Raises:
      UserError: there is none, or it is another one.
    """
    file = directory / "route.json"
    if not file.exists():
        raise UserError(f"nothing to resume in {directory}: there is no route.json; leave out --resume")
    before = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(record))
    for path, value, old in differences(now, {name: before.get(name) for name in now}):
        if not path.startswith(MAY_DIFFER):
            raise UserError(
                f"{directory} was begun with {path} = {old}, now it is {value}: resume with the same, or choose "
                "another --run"
            )
    receipts = directory / "receipts.json"
    rows = json.loads(receipts.read_text(encoding="utf-8"))["receipts"] if receipts.exists() else []
    return [from_json(row) for row in rows]


def check_free(directory: Path, origin: Path, overwrite: bool) -> None:
    """Checks that a route from `origin` may be written to `directory`; nothing is touched.

    Raises:
      UserError: something would be lost.
    """
    if not _names(directory):
        return
    if holds_results(directory) and not overwrite:
        raise UserError(
            f"{directory} holds something already: go on with --resume, replace it with --overwrite, or choose "
            "another --run DIR"
        )
    if "route.json" not in _names(directory):
        raise UserError(f"{directory} is no route of jaxaccel and will not be deleted: choose another --run")
    if directory.resolve() in origin.resolve().parents:
        raise UserError(f"{origin} lies in {directory}, which is to be replaced: choose another --run")


def set_aside(directory: Path) -> Replaced:
    """Sets aside what is there, until it is known whether a new route can take its place."""
    if not _names(directory):
        return Replaced(directory)
    aside = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was killed
    directory.rename(aside)
    return Replaced(directory, aside)


def begin(directory: Path, record: dict[str, Any]) -> None:
    """Makes `directory` and its route.json."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "route.json", record | {"command": command(), "versions": runtime.versions()})


def holds_results(directory: Path) -> bool:
    """Whether there is anything to lose: a step, or a fine-tuning with a checkpoint, or somebody's files."""
    names = _names(directory)
    runs = {path.parent.name for path in directory.glob("*/recipe.json")}
    saved = {path.parent.parent.name for path in directory.glob("*/checkpoints/*")}
    return bool(names - BEGINNING - (runs - saved)) or (bool(names) and "route.json" not in names)


def write_receipts(directory: Path, rows: list[Receipt], record: dict[str, Any]) -> None:
    """Writes receipts.json."""
    device = jax.devices()[0]
    written = {
        "origin": record["origin"],
        "device_kind": device.device_kind,
        "versions": runtime.versions(),
        "receipts": as_json(rows),
    }
    write_json(directory / "receipts.json", written)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()
