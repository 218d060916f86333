"""A bundle opened: what was exported, ready to be run. It needs JAX and NumPy, and no training code."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxaccel.core.formats.safetensors_files import read_content
from jaxaccel.deployment.bundle_files import Files, open_files
from jaxaccel.deployment.manifest import MANIFEST, WEIGHTS, Manifest, read_manifest
from jaxaccel.deployment.signature import Engine, Signature
from jaxaccel.errors import UserError

EngineName = Literal["auto", "xla", "onnxruntime", "openvino"]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An exported model. `open_bundle` makes one."""

    place: Path
    """Its directory or zip."""
    manifest: Manifest
    files: Files

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.manifest.name

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self.manifest.signature

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The arrays that the programs take, by name.

        Raises:
          UserError: the file is missing, damaged or changed.
        """
        return read_content(self.read(WEIGHTS), self.place / WEIGHTS)

    def engine(self, name: EngineName = "auto", batches: Sequence[int] = ()) -> Engine:
        """What computes the model.

        Args:
          name: ``auto`` is the one that was fastest when it was exported, where it can run here; else ``xla``.
          batches: numbers of examples to be ready for, by default those that were exported.

        Raises:
          UserError: the bundle has nothing for that engine or this platform, or the engine is not installed.
        """
        from jaxaccel.deployment.xla_engine import XlaEngine

        if name not in ("auto", "xla"):
            raise UserError(f"{self.place} has nothing for {name}")
        return XlaEngine(self.manifest, self.read, self.weights, batches)

    def read(self, name: str) -> bytes:
        """Reads a file that the manifest lists, and compares its digest.

        Raises:
          UserError: it is missing, was changed, or is not listed.
        """
        fact = self.manifest.files.get(name)
        if fact is None:
            raise UserError(f"{self.place}/{MANIFEST} does not list {name}: it is not read")
        content = self.files.read(name)
        if hashlib.sha256(content).hexdigest() != fact.get("sha256"):
            raise UserError(
                f"{name} in {self.place} was changed or is damaged: its digest is not the manifest's"
            )
        return content


def is_bundle(place: Path) -> bool:
    """Whether that is a bundle, as far as its names say."""
    return (place / MANIFEST).is_file() or (place.is_file() and place.suffix == ".zip")


def open_bundle(place: Path | str) -> Bundle:
    """Opens a bundle, a directory or a zip; nothing in it is executed.

    Raises:
      UserError: there is none, or it is damaged.
    """
    place = Path(place)
    files = open_files(place)
    if MANIFEST not in files.list_names():
        raise UserError(
            f"{place} is no bundle: it has no {MANIFEST}; python -m jaxaccel.export RUN writes one"
        )
    return Bundle(place, read_manifest(files.read(MANIFEST), f"{place}/{MANIFEST}"), files)
