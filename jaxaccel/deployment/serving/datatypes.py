"""Datatypes of the Open Inference Protocol, NumPy's names of them, and raw tensors: little-endian, row by row.

From the section "Tensor Data Types" of the protocol, and its extension for binary tensors.
"""

import math
import struct
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from jaxaccel.deployment.serving.faults import Refusal
from jaxaccel.deployment.signature import Signature
from jaxaccel.errors import UserError

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(object),
}
"""By the protocol's name. BYTES is an array of objects of Python's `bytes`."""
NAMES = {str(dtype): name for name, dtype in DTYPES.items()}
"""The protocol's name by NumPy's: ``float32`` is FP32."""
MAX_AXES = 16


def check_servable(signature: Signature) -> None:
    """Checks that the protocol has a datatype for everything that a model takes and gives.

    Raises:
      UserError: it has none for one of them.
    """
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in NAMES:
            raise UserError(
                f"{spec.name} is {spec.dtype}, for which the Open Inference Protocol has no datatype: "
                f"export it as one of {', '.join(NAMES)}"
            )


def find_dtype(name: str, datatype: str) -> np.dtype:
    """The dtype of a datatype of the protocol.

    Args:
      name: of the tensor, for the message.
      datatype: as the client names it: ``FP32``.

    Raises:
      Refusal: there is none.
    """
    if datatype not in DTYPES:
        raise Refusal(f"input {name}: the datatype must be one of {', '.join(DTYPES)}")
    return DTYPES[datatype]


def check_shape(name: str, shape: Sequence[object], max_elements: int) -> tuple[int, ...]:
    """The shape that a client names, all of whose lengths are at least 1.

    Raises:
      Refusal: it is no shape, or of too many elements.
    """
    if not 1 <= len(shape) <= MAX_AXES:
        raise Refusal(f"input {name}: the shape must have 1 to {MAX_AXES} lengths")
    lengths = tuple(n for n in shape if type(n) is int and n >= 1)
    if len(lengths) != len(shape):
        raise Refusal(f"input {name}: the lengths of the shape must be whole numbers of at least 1")
    if math.prod(lengths) > max_elements:
        raise Refusal(f"input {name}: a tensor may have at most {max_elements:,} elements")
    return lengths


def decode_raw(name: str, data: memoryview | bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor whose bytes a client sent. It reads `data` itself wherever it can, and is read-only.

    Args:
      name: of the tensor, for messages.
      data: its bytes, little-endian.
      dtype: one of `DTYPES`.
      shape: as `check_shape` gives it.

    Raises:
      Refusal: there are more or fewer bytes, or some are no value of the dtype.
    """
    count = math.prod(shape)
    if dtype.hasobject:
        return _read_elements(name, data, count).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise Refusal(
            f"input {name}: {len(data):,} bytes are not the {count * dtype.itemsize:,} of its shape"
        )
    if dtype.kind == "b":
        values = np.frombuffer(data, np.uint8)
        if values.max() > 1:
            raise Refusal(f"input {name}: the bytes of BOOL must be 0 or 1")
        return values.view(np.bool_).reshape(shape)
    # Of a file of another machine NumPy would swap the bytes; ml_dtypes knows the machine's own order only.
    little = dtype if dtype.kind == "V" else dtype.newbyteorder("<")
    return np.frombuffer(data, little).reshape(shape)


def encode_raw(array: np.ndarray) -> bytes:
    """The bytes of a tensor, as `decode_raw` reads them."""
    if array.dtype.hasobject:
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
    return np.ascontiguousarray(array).tobytes()


def _read_elements(name: str, data: memoryview | bytes, count: int) -> np.ndarray:
    """The elements of BYTES: each has its length before it, in four bytes."""
    found, at = np.empty(count, object), 0
    for i in range(count):
        if at + 4 > len(data):
            raise Refusal(f"input {name}: its bytes end before element {i} of {count}")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise Refusal(f"input {name}: element {i} is longer than the bytes that there are")
        found[i] = bytes(data[at : at + length])
        at += length
    if at != len(data):
        raise Refusal(f"input {name}: {len(data) - at:,} bytes follow its last element")
    return found
