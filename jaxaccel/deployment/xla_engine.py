"""Exported programs run by XLA. It needs JAX and NumPy, and no source of the model."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from jaxaccel.deployment.batches import run_in_batches
from jaxaccel.deployment.manifest import Manifest, ProgramEntry
from jaxaccel.deployment.signature import Arrays, Shapes, Signature
from jaxaccel.errors import UserError


class XlaEngine:
    """Runs the programs of a bundle that are for the platform of this process. Each is compiled when it is first used.

    Args:
      manifest: of the bundle.
      read: gives the content of a file of it.
      weights: by name.
      batches: numbers of examples to be ready for, by default those that were exported. Others are compiled from the
        program for any number.

    Raises:
      UserError: there is no program for this platform, or none for a number of examples.
    """

    name = "xla"

    def __init__(
        self,
        manifest: Manifest,
        read: Callable[[str], bytes],
        weights: Mapping[str, np.ndarray],
        batches: Sequence[int] = (),
    ) -> None:
        backend = jax.default_backend().replace("gpu", "cuda")
        self._manifest, self._read = manifest, read
        self._programs = [entry for entry in manifest.programs if entry.backend == backend]
        if not self._programs:
            there = ", ".join(sorted({entry.backend for entry in manifest.programs})) or "no platform"
            raise UserError(
                f"{manifest.name} has programs for {there}, and this process runs on {backend}: "
                f"{_again(manifest)} --backend {backend}"
            )
        exported = sorted({entry.batch for entry in self._programs if entry.batch})
        self._batches = sorted({*batches}) or exported or [1]
        for size in self._batches:
            for shapes in {entry.shapes for entry in self._programs}:
                self._find(size, shapes)
        self._weights = jax.device_put(dict(weights))
        self._compiled: dict[tuple[int, Shapes], Any] = {}
        self._lock = threading.Lock()

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self._manifest.signature

    @property
    def batches(self) -> Sequence[int]:
        """Numbers of examples that it computes at a time, ascending."""
        return self._batches

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The outputs for any number of examples.

        Raises:
          UserError: `arrays` are not the inputs.
        """
        count = self.signature.check_inputs(arrays)
        shapes = tuple(arrays[spec.name].shape[1:] for spec in self.signature.inputs)
        return run_in_batches(functools.partial(self._run, shapes), arrays, count, self._batches)

    def _run(self, shapes: Shapes, arrays: Arrays) -> dict[str, np.ndarray]:
        size = len(next(iter(arrays.values())))
        outputs = self._compile(size, shapes)(self._weights, dict(arrays))
        return {name: np.asarray(x) for name, x in outputs.items()}

    def _compile(self, size: int, shapes: Shapes) -> Callable[..., Mapping[str, jax.Array]]:
        with self._lock:
            if (size, shapes) not in self._compiled:
                entry = self._find(size, shapes)
                program, names = self._deserialize(entry), [spec.name for spec in self.signature.inputs]
                inputs = {
                    name: jax.ShapeDtypeStruct((size, *shape), spec.dtype)
                    for name, shape, spec in zip(names, shapes, self.signature.inputs, strict=True)
                }
                self._compiled[size, shapes] = jax.jit(program.call).lower(self._weights, inputs).compile()
            return self._compiled[size, shapes]

    def _find(self, size: int, shapes: Shapes) -> ProgramEntry:
        fitting = [entry for entry in self._programs if entry.shapes == shapes]
        if not fitting:
            lengths = "; ".join(map(str, sorted({entry.shapes for entry in self._programs})))
            raise UserError(
                f"examples of the shapes {shapes} fit no program: fill them up to one of {lengths}"
            )
        exact = [entry for entry in fitting if entry.batch == size]
        free = [entry for entry in fitting if entry.batch is None and size >= entry.least]
        if not exact and not free:
            raise UserError(f"no program takes {size} examples: {_again(self._manifest)} --batch {size}")
        return (exact or free)[0]

    def _deserialize(self, entry: ProgramEntry) -> export.Exported:
        content = self._read(entry.file)
        try:
            return export.deserialize(bytearray(content))
        except Exception as error:
            written = self._manifest.versions.get("jax", "another version")
            raise UserError(
                f"{entry.file} was written by JAX {written} on {self._manifest.created[:10]}, and JAX "
                f"{jax.__version__} does not read it any more: {_again(self._manifest)}"
            ) from error


def _again(manifest: Manifest) -> str:
    """The command that exports it again."""
    return f"python -m jaxaccel.export {manifest.origin.get('run', 'RUN')} --name {manifest.name}"
