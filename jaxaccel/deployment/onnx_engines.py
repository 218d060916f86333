"""The ONNX model of a bundle, run by ONNX Runtime or OpenVINO on the processor."""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.deployment.batches import run_in_batches
from jaxaccel.deployment.signature import Arrays, Signature
from jaxaccel.errors import UserError

Infer = Callable[[Arrays], Sequence[np.ndarray]]
"""Inputs by name -> outputs, in the order of the signature; from any thread."""


class OnnxEngine:
    """Runs an ONNX model in batches of a few sizes.

    Args:
      name: ``onnxruntime`` or ``openvino``.
      signature: of the model.
      infer: computes a batch.
      batches: sizes of batches, ascending.
    """

    def __init__(self, name: str, signature: Signature, infer: Infer, batches: Sequence[int]) -> None:
        self.name, self.signature, self.batches = name, signature, list(batches)
        self._infer = infer

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The outputs for any number of examples.

        Raises:
          UserError: `arrays` are not the inputs.
        """
        count = self.signature.check_inputs(arrays)
        return run_in_batches(self._run, arrays, count, self.batches)

    def _run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, self._infer(arrays), strict=True))


def open_onnxruntime(content: bytes, signature: Signature, batches: Sequence[int]) -> OnnxEngine:
    """Opens a model with ONNX Runtime, on as many threads as this process has cores.

    Raises:
      UserError: it is not installed, or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("this engine needs ONNX Runtime: pip install 'jaxaccel[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime refuses the model: {_shorten(error)}") from error
    names = [spec.name for spec in signature.outputs]

    def infer(arrays: Arrays) -> Sequence[np.ndarray]:
        try:
            return [np.asarray(x) for x in session.run(names, dict(arrays))]
        except Exception as error:
            raise UserError(f"ONNX Runtime cannot compute that: {_shorten(error)}") from error

    return OnnxEngine("onnxruntime", signature, infer, batches)


def open_openvino(content: bytes, signature: Signature, batches: Sequence[int]) -> OnnxEngine:
    """Opens a model with OpenVINO, compiled for each size of batch, on as many threads as this process has cores.

    Raises:
      UserError: it is not installed, or refuses the model.
    """
    # Importing it tells a server of its maker so, from a process that it forks; without this package it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    except ImportError as error:
        raise UserError("this engine needs OpenVINO: pip install 'jaxaccel[openvino]'") from error
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": count_cores(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the processor can
    }
    compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
    lock = threading.Lock()

    def compile_for(shapes: tuple[tuple[int, ...], ...]) -> Any:
        with lock:
            if shapes not in compiled:
                model = core.read_model(content)
                names = [spec.name for spec in signature.inputs]
                model.reshape(dict(zip(names, map(list, shapes), strict=True)))
                compiled[shapes] = core.compile_model(model, "CPU", settings)
            return compiled[shapes]

    def infer(arrays: Arrays) -> Sequence[np.ndarray]:
        try:
            model = compile_for(tuple(arrays[spec.name].shape for spec in signature.inputs))
            found = model.create_infer_request().infer(
                dict(arrays)
            )  # a request of its own: they hold results
        except Exception as error:
            raise UserError(f"OpenVINO cannot compute that: {_shorten(error)}") from error
        return [np.array(found[model.output(spec.name)]) for spec in signature.outputs]

    try:
        core.read_model(content)
    except Exception as error:
        raise UserError(f"OpenVINO refuses the model: {_shorten(error)}") from error
    return OnnxEngine("openvino", signature, infer, batches)


ENGINES: Mapping[str, Callable[[bytes, Signature, Sequence[int]], OnnxEngine]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}
"""What opens a model, by the name of the engine and of its package."""


def count_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
