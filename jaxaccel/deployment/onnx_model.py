"""The ONNX model of a bundle: written from the model as it was before transformations, and compared with it."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from jaxaccel.core.interpret import is_compressed
from jaxaccel.deployment.model_function import ModelFunction, name_predictions
from jaxaccel.deployment.onnx import to_onnx
from jaxaccel.deployment.onnx_engines import ENGINES
from jaxaccel.deployment.programs import measure_difference
from jaxaccel.deployment.signature import Signature
from jaxaccel.deployment.trained import Trained
from jaxaccel.errors import UserError

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-3
"""Largest difference from the function, as a share of the largest output."""
TOLERANCE_OF_INTEGERS = 0.1
"""The same where activations are rounded: a sum that lies between two integers may fall to either."""


def write_onnx(trained: Trained, function: ModelFunction) -> bytes:
    """Writes what a model predicts as ONNX, for any number of examples.

    Quantized weights stay integers, and static activations keep the scales of their calibration.

    Raises:
      UserError: ONNX has no operator for a part of it, or onnx is not installed.
    """
    plain, integers = trained.plain or trained.call, trained.integers
    quantized = any(is_compressed(x) for x in jax.tree.leaves(trained.params, is_leaf=is_compressed))
    shapes = _open_sizes(function)
    outputs = jax.eval_shape(
        function.call, function.weight_shapes(), function.batch_shapes(1, max(function.examples))
    )
    options: dict[str, Any] = {}
    if integers is not None:
        options = {"activations": integers.activations, "calibration": integers.calibration}
    elif quantized:
        options = {"activations": "none"}
    model = to_onnx(
        name_predictions(trained.task, plain), trained.params, [shapes], input_names=sorted(shapes),
        output_names=sorted(outputs), symbolic_batch=False, **options,
    )  # fmt: skip
    return model.SerializeToString()


def _open_sizes(function: ModelFunction) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the inputs with symbols for the sizes that vary: the batch, and axes that differ with the length.

    Axes that have the same sizes at all lengths have the same symbol.
    """
    by_length = list(function.examples.values())
    varying = dict.fromkeys(
        sizes
        for name, x in by_length[0].items()
        for sizes in zip(*(these[name].shape for these in by_length), strict=True)
        if len({*sizes}) > 1
    )
    names = ["batch", *("length" if number == 0 else f"length{number}" for number in range(len(varying)))]
    batch, *symbols = export.symbolic_shape(", ".join(names))
    symbol_of = dict(zip(varying, symbols, strict=True))
    found = {}
    for name, x in by_length[0].items():
        sizes = zip(*(these[name].shape for these in by_length), strict=True)
        shape = (batch, *(symbol_of.get(each, each[0]) for each in sizes))
        found[name] = jax.ShapeDtypeStruct(shape, x.dtype)
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What engines make of an ONNX model, beside the model itself."""

    differences: Mapping[str, float]
    """By engine: the largest difference, as a share of the largest output."""
    refused: Mapping[str, str]
    """By engine: why it is not to be used."""


def compare_onnx(
    content: bytes, function: ModelFunction, signature: Signature, *, rounded: bool
) -> Comparison:
    """Compares what each engine that is installed makes of an ONNX model with the function.

    Args:
      content: of the model.
      function: what it should compute.
      signature: of both.
      rounded: activations are rounded in it.

    Raises:
      UserError: ONNX Runtime, by which an exporter is judged, refuses it or computes something else.
    """
    limit = TOLERANCE_OF_INTEGERS if rounded else TOLERANCE
    cases = [(function.make_inputs(count, length), count) for length in function.examples for count in (1, 3)]
    compute = jax.jit(function.call)
    expected = [
        {name: np.asarray(x) for name, x in compute(dict(function.weights), inputs).items()}
        for inputs, _ in cases
    ]
    differences: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, opened in ENGINES.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            found = [opened(content, signature, [count]).run(inputs) for inputs, count in cases]
        except UserError as error:
            refused[name] = str(error)
            continue
        differences[name] = max(map(measure_difference, found, expected))
        if not differences[name] <= limit:
            refused[name] = f"its result differs by {differences[name]:.2g} of the largest output"
    if reason := refused.get("onnxruntime"):
        raise UserError(f"the ONNX model is not written, ONNX Runtime does not compute the model: {reason}")
    return Comparison(differences, refused)
