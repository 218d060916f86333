"""``manifest.json``: all that a bundle says of itself.

Docs: ``docs/deployment.md`` has the schema. Reading it needs neither the training code nor the model's source.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxaccel.deployment.signature import Shapes, Signature
from jaxaccel.errors import UserError

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CARD = "README.md"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ProgramEntry:
    """One program of `jax.export`."""

    file: str
    backend: str
    """``cpu``, ``cuda`` or ``tpu``."""
    batch: int | None
    """Examples that it takes; None is any number from `least` on."""
    length: int
    """That examples are filled up to; 0 where they have one shape."""
    least: int
    shapes: Shapes
    """Of one example."""
    difference: float | None
    """From the function that it was made of, as a share of the largest output; None where it could not run there."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a bundle, what it takes and gives, and where it came from."""

    name: str
    created: str
    """Date and time in UTC, as ISO 8601 writes it."""
    versions: Mapping[str, str]
    """Of the packages that wrote it."""
    signature: Signature
    programs: Sequence[ProgramEntry] = ()
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Files of other formats, by format: ``{"onnx": "model.onnx"}``."""
    class_names: Sequence[str] | None = None
    """In the order of the logits."""
    task: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the task, by which inputs are brought to the model and predictions are described."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the run kept of its data."""
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The run that it was exported from."""
    receipts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was measured: scores, bytes, and milliseconds by engine, batch and threads, on which device."""
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Size in bytes and SHA-256 of every other file."""

    def list_batches(self) -> list[int]:
        """Batch sizes that were exported, ascending; one example where there are none."""
        return sorted({entry.batch for entry in self.programs if entry.batch}) or [1]

    def list_shapes(self) -> list[Shapes]:
        """Shapes of one example that were exported, the shortest first: one for each length."""
        return sorted({entry.shapes for entry in self.programs})

    def as_text(self) -> str:
        """The content of the file; `read_manifest` reads it."""
        values = dataclasses.asdict(self) | {"format": FORMAT, "signature": self.signature.as_json()}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_manifest(content: bytes, where: str) -> Manifest:
    """Reads the content of the file.

    Args:
      content: of the file.
      where: it lies, for the message.

    Raises:
      UserError: it is none, is damaged, or of a newer format.
    """
    try:
        values = json.loads(content)
        number = values.pop("format")
        if not isinstance(number, int):
            raise ValueError("no number")
        if number > FORMAT:
            raise UserError(
                f"{where} is of format {number}, this jaxaccel reads up to {FORMAT}: upgrade jaxaccel"
            )
        signature = Signature.from_json(values.pop("signature"))
        programs = tuple(map(_read_program, values.pop("programs")))
        names = values.pop("class_names")
        found = Manifest(
            signature=signature, programs=programs, class_names=None if names is None else tuple(map(str, names)),
            **values,
        )  # fmt: skip
        _check_kinds(found)
        return found
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is no manifest of a bundle, or is damaged") from error


def _read_program(values: Mapping[str, Any]) -> ProgramEntry:
    shapes = tuple(tuple(map(int, shape)) for shape in values["shapes"])
    batch = None if values["batch"] is None else int(values["batch"])
    difference = None if values["difference"] is None else float(values["difference"])
    return ProgramEntry(
        str(values["file"]), str(values["backend"]), batch, int(values["length"]), int(values["least"]), shapes,
        difference,
    )  # fmt: skip


def _check_kinds(manifest: Manifest) -> None:
    mappings = ("versions", "models", "task", "facts", "origin", "receipts", "files")
    if not all(isinstance(getattr(manifest, name), dict) for name in mappings):
        raise TypeError("no mapping")
    if not all(isinstance(x, str) for x in (manifest.name, manifest.created, *manifest.models.values())):
        raise TypeError("no text")
    if not all(isinstance(fact, dict) for fact in manifest.files.values()):
        raise TypeError("no facts of a file")
