"""Whether a run goes on with the data that it began with."""

import json
from pathlib import Path

import jax

from jaxaccel.errors import UserError, option
from jaxaccel.training.run_directory import write_json

RECORD = "data.json"
"""File of a run with the digest of its data set."""


def compare_data(directory: Path, name: str, digest: str) -> None:
    """Compares the data set with what the run was trained on, where the run has a record that can be read.

    Args:
      directory: of the run that goes on.
      name: of the data set.
      digest: of its content, by `open_splits`.

    Raises:
      UserError: the data set is not what it was.
    """
    if _read(directory / RECORD) not in (None, digest):
        raise UserError(
            f"the data set {name} has changed since {directory} was trained on it: put it back, or start a new "
            f"run from its weights with {option('init_from', str(directory))}"
        )


def record_data(directory: Path, name: str, digest: str) -> None:
    """Writes the digest of the data set into the run's directory, in place of another or a damaged one."""
    if _read(directory / RECORD) != digest and jax.process_index() == 0:
        write_json(directory / RECORD, {"name": name, "sha256": digest})


def _read(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
