"""What a model makes of one file or text that somebody hands over, in words: for pages and services."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from jaxaccel.deployment.load import Predictor
from jaxaccel.deployment.predict_inputs import describe_inputs
from jaxaccel.errors import UserError
from jaxaccel.tasks.reading import Input

MAX_SUFFIX = 8
"""Characters of a file's ending that count."""


@dataclasses.dataclass(frozen=True)
class Describer:
    """Describes what `model` predicts, as ``python -m jaxaccel.predict`` writes it."""

    model: Predictor
    top: int = 5
    """How many classes to name."""

    def describe(self, content: bytes | str, file_name: str = "") -> dict[str, Any]:
        """Says what the model makes of a picture, a sound or a text.

        Args:
          content: the bytes of a file, or a text. Of a file with several inputs the first one counts.
          file_name: of the file, whose ending tells its kind.

        Returns:
          What can be written as JSON: ``{"label": "cat", "scores": {"cat": 0.98}}`` of a picture.

        Raises:
          UserError: it cannot be read.
        """
        if isinstance(content, str):
            return self._describe(self.model.task.read_text(content, "text"), "the text")
        suffix = "".join(c for c in Path(file_name).suffix if c.isalnum())[:MAX_SUFFIX]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"given.{suffix or 'bin'}"
            path.write_bytes(content)
            found = next(iter(self.model.task.read(path)), None)
            if found is None:
                raise UserError(f"{file_name or 'the file'} holds nothing")
            return self._describe(found, file_name or "the file", str(path))

    def _describe(self, given: Input, name: str, path: str = "") -> dict[str, Any]:
        (record,) = describe_inputs(self.model, [given], top=self.top, size=1)
        if "error" in record:
            said = str(record["error"])
            raise UserError(said.replace(path, name) if path else said)
        return {key: value for key, value in record.items() if key != "input"}
