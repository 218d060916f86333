"""A bundle opened: what was exported, ready to be run. It needs JAX and NumPy, and no training code."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np

from jaxaccel.core import runtime
from jaxaccel.core.formats.safetensors_files import read_content
from jaxaccel.deployment.bundle_files import Files, open_files
from jaxaccel.deployment.fastest_engine import EngineTime, FastestEngine, choose_engines
from jaxaccel.deployment.manifest import MANIFEST, WEIGHTS, Manifest, read_manifest
from jaxaccel.deployment.onnx_engines import ENGINES, count_cores
from jaxaccel.deployment.signature import Engine, Signature
from jaxaccel.deployment.xla_engine import XlaEngine
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
          name: ``auto`` takes the one that was the fastest for each size when it was exported, on a processor like
            this one; else ``xla``.
          batches: numbers of examples to be ready for, by default those that were exported.

        Raises:
          UserError: the bundle has nothing for that engine or this platform, or the engine is not installed.
        """
        if name == "auto":
            return self._choose_engine(batches)
        if name == "xla":
            return XlaEngine(self.manifest, self.read, self.weights, batches)
        if "onnx" not in self.manifest.models:
            again = f"python -m jaxaccel.export {self.manifest.origin.get('run', 'RUN')} --to bundle,onnx"
            raise UserError(f"{self.place} holds no ONNX model, which {name} needs: {again}")
        if reason := self.manifest.receipts.get("onnx", {}).get("refused", {}).get(name):
            raise UserError(f"{name} does not compute {self.place}: {reason}")
        content = self.read(self.manifest.models["onnx"])
        return ENGINES[name](content, self.signature, sorted({*batches}) or self.manifest.list_batches())

    def _choose_engine(self, batches: Sequence[int]) -> Engine:
        """The engine that was the fastest for each size of batch, on this processor; else XLA."""
        sizes = sorted({*batches}) or self.manifest.list_batches()
        same = self.manifest.receipts.get("processor") == runtime.find_processor()
        times = (
            [EngineTime.from_json(row) for row in self.manifest.receipts.get("engines", ())] if same else []
        )
        names = choose_engines(times, sizes, count_cores())
        engines: dict[str, Engine] = {"xla": self.engine("xla", batches)}
        for other in {*names.values()} - {"xla"}:
            try:
                engines[other] = self.engine(cast(EngineName, other), batches)
            except UserError:  # it is not installed here
                continue
        if [*engines] == ["xla"]:
            return engines["xla"]
        return FastestEngine({size: engines.get(name, engines["xla"]) for size, name in names.items()})

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
