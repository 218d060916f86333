"""A model repository for NVIDIA's Triton Inference Server, from the ONNX model of a bundle.

The layout is that of https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md,
and ``config.pbtxt`` is a ``ModelConfig`` of Triton's model_config.proto in protobuf's text format.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError

DELAY_US = 2000
"""Microseconds that Triton waits for a batch to fill."""
DATATYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32",
    "int64": "TYPE_INT64", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}  # fmt: skip
"""Triton's names of dtypes."""


def write_repository(
    folder: Path, name: str, onnx: Path, signature: Signature, batches: Sequence[int]
) -> None:
    """Writes ``FOLDER/NAME/config.pbtxt`` and ``FOLDER/NAME/1/model.onnx``.

    Args:
      folder: to write into.
      name: of the model.
      onnx: the model's file.
      signature: of the model.
      batches: sizes of batches that Triton should gather, ascending; the last one is the largest that it makes.

    Raises:
      UserError: Triton has no such dtype.
    """
    version = folder / name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(onnx, version / "model.onnx")
    text = write_config(name, signature, batches)
    (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")


def write_config(name: str, signature: Signature, batches: Sequence[int]) -> str:
    """The text of ``config.pbtxt``.

    Raises:
      UserError: Triton has no such dtype.
    """
    parts = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {batches[-1]}",
        *(f"input {_write_tensor(spec)}" for spec in signature.inputs),
        *(f"output {_write_tensor(spec)}" for spec in signature.outputs),
    ]
    if batches[-1] > 1:
        sizes = ", ".join(str(size) for size in batches if size > 1)
        parts.append(
            "dynamic_batching {\n"
            f"  preferred_batch_size: [ {sizes} ]\n"
            f"  max_queue_delay_microseconds: {DELAY_US}\n"
            "}"
        )
    return "\n".join(parts) + "\n"


def _write_tensor(spec: TensorSpec) -> str:
    """A tensor without its axis of examples, which Triton adds. What has no other axis is reshaped from one number."""
    if spec.dtype not in DATATYPES:
        raise UserError(f"Triton has no dtype for {spec.name}, which is {spec.dtype}")
    inner = [-1 if n is None else n for n in spec.shape[1:]]
    lines = [
        f"  name: {json.dumps(spec.name)}",
        f"  data_type: {DATATYPES[spec.dtype]}",
        f"  dims: [ {', '.join(map(str, inner or [1]))} ]",
        *([] if inner else ["  reshape: { shape: [ ] }"]),
    ]
    return "{\n" + "\n".join(lines) + "\n}"
