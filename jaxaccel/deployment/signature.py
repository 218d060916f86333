"""What an exported model takes and gives: `TensorSpec`, `Signature`, and what computes it, an `Engine`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxaccel.errors import UserError

Arrays = Mapping[str, np.ndarray]
Shapes = tuple[tuple[int, ...], ...]
"""Of each input of one example, in the order of the signature."""
SOLE_OUTPUTS = ("logits", "output")
"""Names of the output of a task that predicts one array: logits of classes, and anything else."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One array by name. Its first axis counts examples; None is a length that varies, of the batch or of examples."""

    name: str
    dtype: str
    """As NumPy and ml_dtypes name it: ``float32``, ``uint8``, ``bfloat16``."""
    shape: tuple[int | None, ...]

    def as_json(self) -> dict[str, Any]:
        """As a manifest holds it; `from_json` reads it."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TensorSpec":
        """The spec that `as_json` wrote."""
        shape = tuple(None if n is None else int(n) for n in values["shape"])
        return cls(str(values["name"]), str(values["dtype"]), shape)

    def check(self, array: np.ndarray) -> None:
        """Checks that `array` is such a one.

        Raises:
          UserError: it has another dtype or shape.
        """
        fits = array.ndim == len(self.shape) and all(
            n in (None, m) for n, m in zip(self.shape, array.shape, strict=True)
        )
        if not fits or str(array.dtype) != self.dtype:
            raise UserError(f"{self.name} must be {self}, not {array.dtype} {_shape_text(array.shape)}")

    def __str__(self) -> str:
        return f"{self.dtype} {_shape_text(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a model takes and gives, each by name, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def has_sole_output(self) -> bool:
        """Whether the task predicts one array, and no arrays by name."""
        return len(self.outputs) == 1 and self.outputs[0].name in SOLE_OUTPUTS

    def as_json(self) -> dict[str, Any]:
        """As a manifest holds it; `from_json` reads it."""
        return {
            "inputs": [spec.as_json() for spec in self.inputs],
            "outputs": [spec.as_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Signature":
        """The signature that `as_json` wrote."""
        inputs, outputs = (tuple(map(TensorSpec.from_json, values[part])) for part in ("inputs", "outputs"))
        return cls(inputs, outputs)

    def check_inputs(self, arrays: Arrays) -> int:
        """Checks that `arrays` are the inputs; returns the number of examples.

        Raises:
          UserError: one is missing, is of another dtype or shape, or there are others; or they differ in length.
        """
        names = [spec.name for spec in self.inputs]
        if arrays.keys() != {*names}:
            given = ", ".join(sorted(arrays)) or "nothing"
            raise UserError(f"the model takes {', '.join(names)}, and got {given}")
        for spec in self.inputs:
            spec.check(arrays[spec.name])
        counts = {len(arrays[name]) for name in names}
        if len(counts) != 1:
            raise UserError(f"the inputs differ in their numbers of examples: {sorted(counts)}")
        return counts.pop()


class Engine(Protocol):
    """What computes a model: XLA, ONNX Runtime, OpenVINO. May be called from several threads."""

    @property
    def name(self) -> str:
        """``xla``, ``onnxruntime`` or ``openvino``."""
        ...

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        ...

    @property
    def batches(self) -> Sequence[int]:
        """Numbers of examples that it was made ready for, ascending; any other number is filled up or cut."""
        ...

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The outputs for `arrays`, which are the inputs by name, for any number of examples.

        Raises:
          UserError: they are not the inputs.
        """
        ...


def _shape_text(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ("," * (len(shape) == 1)) + ")"
