"""Requests and answers of HTTP: JSON, with tensors as lists or, behind the JSON, as raw bytes.

From https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md), and its extension for
binary tensors: the header ``Inference-Header-Content-Length`` says how many bytes are JSON, ``binary_data_size`` of an
input how many of those behind it are its own, in the order of the inputs.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from jaxaccel.deployment.serving.datatypes import NAMES, check_shape, decode_raw, encode_raw, find_dtype
from jaxaccel.deployment.serving.faults import TOO_LARGE, Refusal
from jaxaccel.deployment.serving.json_tensors import decode_list, encode_list
from jaxaccel.deployment.serving.limits import MAX_NAME, Limits
from jaxaccel.deployment.signature import Arrays, Signature

HEADER_LENGTH = "inference-header-content-length"


@dataclasses.dataclass(frozen=True)
class InferRequest:
    """What a client asks for."""

    id: str
    arrays: Arrays
    outputs: Mapping[str, bool]
    """Whether each output that it wants is to be binary, by name, in its order."""
    timeout: float | None
    """Seconds to wait at most."""


def decode_request(body: bytes, json_size: str | None, signature: Signature, limits: Limits) -> InferRequest:
    """The request that a body has.

    Args:
      body: JSON, and the bytes of binary tensors behind it.
      json_size: what the header `HEADER_LENGTH` says; None where there is none, and all is JSON.
      signature: of the model.
      limits: what it may ask for.

    Raises:
      Refusal: it is no request of the protocol, or not one for that model.
    """
    size = _read_size(json_size, len(body))
    if size > limits.json_bytes:
        raise Refusal(
            f"more than {limits.json_mb:g} MB of JSON: send large tensors as binary data", TOO_LARGE
        )
    values = parse_json(body[:size] if size < len(body) else body)
    inputs = _field(values, "inputs", list, required=True)
    if not 1 <= len(inputs) <= limits.inputs:
        raise Refusal(f"there must be 1 to {limits.inputs} inputs")
    arrays: dict[str, np.ndarray] = {}
    rest = memoryview(body)[size:]
    for value in inputs:
        name, array, used = _read_input(value, rest, limits)
        if name in arrays:
            raise Refusal(f"input {name} stands twice in the request")
        arrays[name], rest = array, rest[used:]
    if len(rest):
        raise Refusal(f"{len(rest):,} bytes of the body belong to no input: check binary_data_size")
    parameters = _field(values, "parameters", dict)
    return InferRequest(
        check_text("id", values.get("id", "")),
        arrays,
        _read_outputs(values, parameters, signature),
        read_timeout(parameters.get("timeout")),
    )


def encode_response(
    request: InferRequest, name: str, version: str, outputs: Arrays
) -> tuple[list[bytes], int | None]:
    """The body of an answer, in pieces, and how many bytes of it are JSON; None where all are.

    Args:
      request: what was asked for.
      name: of the model.
      version: of the model.
      outputs: what it gave.

    Raises:
      Refusal: an output cannot be JSON.
    """
    described, raw = [], []
    for output, binary in request.outputs.items():
        array = outputs[output]
        value: dict[str, Any] = {
            "name": output,
            "datatype": NAMES[str(array.dtype)],
            "shape": list(array.shape),
        }
        if binary:
            raw.append(encode_raw(array))
            value["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            value["data"] = encode_list(array)
        described.append(value)
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": described}
    if request.id:
        answer["id"] = request.id
    head = json.dumps(answer, separators=(",", ":")).encode()
    return [head, *raw], len(head) if raw else None


def parse_json(text: bytes) -> dict[str, Any]:
    """The object that a body has as JSON.

    Raises:
      Refusal: it is none.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # of JSON, UTF-8, a number of too many digits, or too many brackets
        raise Refusal("the body is no JSON: check it, and Inference-Header-Content-Length") from None
    if not isinstance(value, dict):
        raise Refusal("the JSON of the body must be an object")
    return value


def check_text(what: str, value: object) -> str:
    """A short text of a request: an id, a name.

    Raises:
      Refusal: it is no text, or too long.
    """
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise Refusal(f"{what} must be a text of at most {MAX_NAME} characters")
    return value


def read_timeout(microseconds: object) -> float | None:
    """The parameter ``timeout`` of a request, in seconds; None where it has none.

    Raises:
      Refusal: it is no whole number of microseconds.
    """
    if microseconds is None:
        return None
    if type(microseconds) is not int or not 1 <= microseconds < 1 << 53:
        raise Refusal("the parameter timeout must be a whole number of microseconds")
    return microseconds / 1e6


def check_output(name: object, signature: Signature, found: Mapping[str, object]) -> str:
    """The name of an output that a client wants.

    Raises:
      Refusal: the model has none of that name, or it stands twice in the request.
    """
    known = [spec.name for spec in signature.outputs]
    if check_text("the name of an output", name) not in known:
        raise Refusal(f"the model gives {', '.join(known)}, and no output {name}")
    if name in found:
        raise Refusal(f"output {name} stands twice in the request")
    return str(name)


def _read_size(json_size: str | None, body: int) -> int:
    if json_size is None:
        return body
    if not (json_size.isascii() and json_size.isdecimal() and len(json_size) < 20 and int(json_size) <= body):
        raise Refusal(f"the header Inference-Header-Content-Length must be a number of at most {body} bytes")
    return int(json_size)


def _read_input(value: Any, rest: memoryview, limits: Limits) -> tuple[str, np.ndarray, int]:
    """The name and the tensor of an input, and how many bytes of `rest` it took."""
    if not isinstance(value, dict):
        raise Refusal("each of the inputs must be an object")
    name = check_text("the name of an input", value.get("name"))
    datatype = check_text(f"the datatype of {name}", value.get("datatype"))
    dtype = find_dtype(name, datatype)
    shape = check_shape(name, _field(value, "shape", list, required=True), limits.elements)
    parameters = _field(value, "parameters", dict)
    if "shared_memory_region" in parameters:
        raise Refusal(f"input {name}: there is no shared memory here")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in value:
            raise Refusal(f"input {name} must have data, or binary_data_size in its parameters")
        return name, decode_list(name, value["data"], dtype, shape), 0
    if "data" in value:
        raise Refusal(f"input {name} has data as well as binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Refusal(f"input {name}: binary_data_size must be a number of bytes that follow the JSON")
    return name, decode_raw(name, rest[:size], dtype, shape), size


def _read_outputs(values: Mapping[str, Any], parameters: Mapping, signature: Signature) -> dict[str, bool]:
    wanted = _field(values, "outputs", list)
    by_default = _flag(parameters, "binary_data_output", False)
    if not wanted:
        return {spec.name: by_default for spec in signature.outputs}
    found: dict[str, bool] = {}
    for value in wanted:
        if not isinstance(value, dict):
            raise Refusal("each of the outputs must be an object")
        name = check_output(value.get("name"), signature, found)
        own = _field(value, "parameters", dict)
        if "classification" in own:
            raise Refusal("the extension for classifications is not served: ask for the output itself")
        if "shared_memory_region" in own:
            raise Refusal(f"output {name}: there is no shared memory here")
        found[name] = _flag(own, "binary_data", by_default)
    return found


def _field(values: Mapping[str, Any], name: str, kind: type, required: bool = False) -> Any:
    """A field that is a list or an object; an empty one where it is missing."""
    value = values.get(name)
    if value is None and not required:
        return kind()
    if not isinstance(value, kind):
        raise Refusal(f"{name} must be {'a list' if kind is list else 'an object'}")
    return value


def _flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(f"the parameter {name} must be true or false")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
