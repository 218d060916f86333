"""Programs of a model: traced for one platform and one batch size or any, serialized, compared with the function.

Serialized programs are those of `jax.export` (https://docs.jax.dev/en/latest/export/export.html): StableHLO that JAX
promises to read for six months at least.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from jaxaccel.core import kernels
from jaxaccel.core.platform import trace_for
from jaxaccel.deployment.model_function import ModelFunction
from jaxaccel.deployment.signature import Arrays
from jaxaccel.errors import UserError

TOLERANCE = 1e-4
"""Largest difference from the function that a program may have, as a share of the largest output."""


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """For what a program is."""

    backend: str
    """``cpu``, ``cuda`` or ``tpu``."""
    batch: int | None
    """Number of examples; None is any number from `least` on."""
    length: int
    """That examples are filled up to; 0 where they have one shape."""
    least: int = 1

    @property
    def name(self) -> str:
        """The name of its file, without an ending: ``cpu-batch16-length128``."""
        size = "any" if self.batch is None else str(self.batch)
        return f"{self.backend}-batch{size}" + (f"-length{self.length}" if self.length else "")


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, ready to be written."""

    spec: ProgramSpec
    content: bytes
    stablehlo: bytes
    """The program alone, as other compilers read it: bytecode of portable StableHLO."""
    difference: float | None
    """Largest difference from the function, as a share of its largest output; None where it cannot run here."""


def list_specs(
    function: ModelFunction, backends: tuple[str, ...], batches: tuple[int, ...]
) -> list[ProgramSpec]:
    """Lists the programs to make: for every backend and length one for each batch size, and one for all others.

    Where there is a program for one example, that for any number is for two and more: it then multiplies matrices, and
    no vectors, which are computed in other ways.
    """
    least = 2 if 1 in batches else 1
    return [
        ProgramSpec(backend, batch, length, 1 if batch else least)
        for backend in backends
        for length in function.examples
        for batch in (*batches, None)
    ]


def make_program(function: ModelFunction, spec: ProgramSpec) -> Program:
    """Traces, serializes and compares a program.

    Raises:
      UserError: the model cannot be traced like that, or the program computes something else.
    """
    exported = _export(function, spec, spec.backend)
    return Program(
        spec, bytes(exported.serialize()), exported.mlir_module_serialized, _compare(function, spec, exported)
    )


def _export(function: ModelFunction, spec: ProgramSpec, platform: str) -> export.Exported:
    count: Any = spec.batch
    if count is None:
        (count,) = export.symbolic_shape("batch", constraints=[f"batch >= {spec.least}"])
    shapes = function.weight_shapes(), function.batch_shapes(count, spec.length)
    try:
        with trace_for(spec.backend), kernels.left_out():
            # A function of its own, so that nothing that was traced for another platform is found again.
            return export.export(jax.jit(lambda *args: function.call(*args)), platforms=[platform])(*shapes)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the model cannot be exported as {spec.name}: {reason}") from error


def _compare(function: ModelFunction, spec: ProgramSpec, exported: export.Exported) -> float | None:
    here = jax.default_backend().replace("gpu", "cuda")
    try:
        runnable = exported if spec.backend == here else _export(function, spec, here)
        count = spec.batch or spec.least + 1
        inputs = function.make_inputs(count, spec.length)
        found = jax.jit(runnable.call)(dict(function.weights), inputs)
    except Exception:
        if spec.backend == here:
            raise
        return None  # it calls what only the other platform has
    with kernels.left_out():
        expected = jax.jit(lambda *args: function.call(*args))(dict(function.weights), inputs)
    difference = measure_difference(_as_arrays(found), _as_arrays(expected))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{spec.name} differs from the model by {difference:.2g} of its largest output: it is not written"
        )
    return difference


def measure_difference(found: Arrays, expected: Arrays) -> float:
    """The largest difference between two sets of outputs, as a share of the largest number that is expected.

    Places where both are no finite numbers count as equal if they are the same; of whole numbers the share of those
    that differ counts.
    """
    return max(_difference(found[name], expected[name]) for name in expected)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    if not np.issubdtype(expected.dtype, np.inexact) and expected.dtype.kind != "V":
        return float(np.mean(found != expected)) if expected.size else 0.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if (
        not np.array_equal(found[~finite], expected[~finite], equal_nan=True)
        or not np.isfinite(found[finite]).all()
    ):
        return np.inf
    largest = np.abs(expected[finite]).max(initial=0)
    return float(np.abs(found[finite] - expected[finite]).max(initial=0) / (largest or 1))


def _as_arrays(outputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in outputs.items()}
