"""Requests and answers of gRPC, to and from arrays: contents by type, or raw bytes beside them."""

import math
from typing import Any

import numpy as np

from jaxaccel.deployment.serving import open_inference_pb2 as messages
from jaxaccel.deployment.serving.codec import InferRequest, check_output, check_text, read_timeout
from jaxaccel.deployment.serving.datatypes import (
    DTYPES,
    NAMES,
    check_shape,
    decode_raw,
    encode_raw,
    find_dtype,
)
from jaxaccel.deployment.serving.faults import Refusal
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.deployment.signature import Arrays, Signature

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field that holds the elements of a datatype. FP16 and BF16 have none: they are sent as raw bytes."""


def decode_message(message: messages.ModelInferRequest, signature: Signature, limits: Limits) -> InferRequest:
    """The request that a message has.

    Raises:
      Refusal: it is not one for that model.
    """
    if not 1 <= len(message.inputs) <= limits.inputs:
        raise Refusal(f"there must be 1 to {limits.inputs} inputs")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Refusal(f"there are {len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    arrays: dict[str, np.ndarray] = {}
    for i, value in enumerate(message.inputs):
        name = check_text("the name of an input", value.name)
        if name in arrays:
            raise Refusal(f"input {name} stands twice in the request")
        dtype = find_dtype(name, value.datatype)
        shape = check_shape(name, list(value.shape), limits.elements)
        if "shared_memory_region" in value.parameters:
            raise Refusal(f"input {name}: there is no shared memory here")
        if not raw:
            arrays[name] = _read_contents(name, value, dtype, shape)
        elif value.HasField("contents"):
            raise Refusal(f"input {name} has contents as well as raw_input_contents")
        else:
            arrays[name] = decode_raw(name, raw[i], dtype, shape)
    outputs: dict[str, bool] = {}
    for wanted in message.outputs:
        outputs[check_output(wanted.name, signature, outputs)] = True
        if not {"shared_memory_region", "classification"}.isdisjoint(wanted.parameters):
            raise Refusal(f"output {wanted.name}: neither shared memory nor classifications are served")
    outputs = outputs or {spec.name: True for spec in signature.outputs}
    timeout = read_timeout(_read_parameter(message.parameters, "timeout"))
    return InferRequest(check_text("id", message.id), arrays, outputs, timeout)


def encode_message(
    request: InferRequest, name: str, version: str, outputs: Arrays
) -> messages.ModelInferResponse:
    """The message of an answer. All tensors are raw bytes, as Triton sends them.

    Args:
      request: what was asked for.
      name: of the model.
      version: of the model.
      outputs: what it gave.
    """
    answer = messages.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    for output in request.outputs:
        array = outputs[output]
        answer.outputs.add(name=output, datatype=NAMES[str(array.dtype)], shape=array.shape)
        answer.raw_output_contents.append(encode_raw(array))
    return answer


def _read_contents(name: str, value: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    field = CONTENTS.get(value.datatype)
    if field is None:
        raise Refusal(f"input {name}: {value.datatype} is sent as raw_input_contents")
    filled = [found.name for found, _ in value.contents.ListFields()]
    if filled != [field]:
        raise Refusal(f"input {name}: {value.datatype} must stand in {field} alone")
    elements = getattr(value.contents, field)
    if len(elements) != math.prod(shape):
        raise Refusal(
            f"input {name}: {len(elements):,} elements are not the {math.prod(shape):,} of its shape"
        )
    try:
        return np.array(elements, DTYPES[value.datatype]).reshape(shape)
    except OverflowError:
        raise Refusal(f"input {name}: a number is out of the range of its datatype") from None


def _read_parameter(parameters: Any, name: str) -> object:
    if name not in parameters:
        return None
    chosen = parameters[name].WhichOneof("parameter_choice")
    return getattr(parameters[name], chosen) if chosen else None
