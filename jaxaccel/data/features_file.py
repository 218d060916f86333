"""Which classes a prepared data set's ``features.json`` names: TFDS imports whatever stands there."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxaccel.errors import UserError

MAX_CHARACTERS = 100_000_000
"""Of features.json, which holds the names of classes as well."""
_OF_TFDS = re.compile(r"tensorflow_datasets(\.[A-Za-z]\w*)+")
_CLASS = ("pythonClassName", "python_class_name")
"""What TFDS calls the class of a feature; its older files write ``type`` beside ``content``."""


def check_features(directory: Path) -> None:
    """Checks that all features of a prepared data set are classes of tensorflow-datasets.

    Raises:
      UserError: one is not, or the file is damaged; TFDS has not read it then.
    """
    file = directory / "features.json"
    if not file.is_file():
        return  # TFDS says what is missing
    try:
        with file.open(encoding="utf-8") as opened:
            names = list(_classes(json.loads(opened.read(MAX_CHARACTERS))))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged: delete that folder, and the data set is prepared again"
        ) from error
    for name in names:
        if not isinstance(name, str) or not _OF_TFDS.fullmatch(name):
            raise UserError(
                f"{file} names {name!r:.80} as the class of a feature: only those of tensorflow_datasets are imported"
            )


def _classes(value: Any) -> Iterator[Any]:
    """Everything that TFDS would take for the name of a class, however deep."""
    if isinstance(value, list):
        for inner in value:
            yield from _classes(inner)
    elif isinstance(value, dict):
        yield from (value[key] for key in _CLASS if key in value and not isinstance(value[key], dict))
        if "content" in value and not isinstance(value.get("type", {}), dict):
            yield value["type"]
        for inner in value.values():
            yield from _classes(inner)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):  # a description that begins so
            yield from _classes(json.loads(value))  # a feature's own JSON, as text
