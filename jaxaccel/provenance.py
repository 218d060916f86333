"""Whether a run goes on with the data that it began with."""

import json
from pathlib import Path

import jax

from jaxaccel.errors import UserError, option
from jaxaccel.rundir import write_json

RECORD = "data.json"
"""File of a run with the digest of its data set."""


def record_data(directory: Path, name: str, digest: str, *, resume: bool) -> None:
    """Writes the digest of the data set into the run's directory, or compares it with the one there.

    Args:
      directory: of the run.
      name: of the data set.
      digest: of its content, by `open_splits`.
      resume: whether the run goes on. One that has no record, or a damaged one, gets it anew.

    Raises:
      UserError: the data set is not what it was.
    """
    before = _read(directory / RECORD) if resume else None
    if before not in (None, digest):
        raise UserError(
            f"the data set {name} has changed since {directory} was trained on it: put it back, or start a new "
            f"run from its weights with {option('init_from', str(directory))}"
        )
    if before is None and jax.process_index() == 0:
        write_json(directory / RECORD, {"name": name, "sha256": digest})


def _read(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
