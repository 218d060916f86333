"""Tensors as lists of JSON, checked strictly: no value becomes another one on its way."""

import itertools
import math
from typing import Any

import numpy as np

from jaxaccel.deployment.serving.faults import Refusal


def decode_list(name: str, data: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that a list has, flat or nested as its shape.

    Args:
      name: of the tensor, for messages.
      data: what JSON had.
      dtype: what it is to be.
      shape: as `datatypes.check_shape` gives it.

    Raises:
      Refusal: the list has another shape, or a value that is none of the dtype.
    """
    values = _flatten(name, data, shape)
    kinds = set(map(type, values))
    if dtype.hasobject:
        if kinds != {str}:
            raise Refusal(f"input {name}: the elements of BYTES must be texts")
        found = np.empty(len(values), object)
        try:
            found[:] = [value.encode() for value in values]
        except UnicodeEncodeError:
            raise Refusal(f"input {name}: a text has half of a surrogate pair") from None
        return found.reshape(shape)
    if not kinds <= _allowed(dtype):
        raise Refusal(f"input {name}: the elements must be {_WORDS.get(dtype.kind, 'numbers')}")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is told below
            array = np.array(values, np.float64 if dtype.kind == "V" else dtype).astype(dtype)
    except OverflowError:
        raise Refusal(f"input {name}: a number is out of the range of its datatype") from None
    if dtype.kind in "fV" and not np.isfinite(array.astype(np.float64)).all():
        raise Refusal(f"input {name}: a number is out of the range of its datatype")
    return array.reshape(shape)


def encode_list(array: np.ndarray) -> list[Any]:
    """The elements of a tensor, flat, as JSON may have them. What is not finite becomes null, for JSON knows no NaN.

    Raises:
      Refusal: they are BYTES that are no text.
    """
    flat = array.ravel()
    if array.dtype.hasobject:
        try:
            return [value.decode() for value in flat.tolist()]
        except UnicodeDecodeError:
            raise Refusal("an output is no text: ask for it with binary_data") from None
    if array.dtype.kind not in "fV":
        return flat.tolist()
    flat = flat.astype(np.float64) if array.dtype.kind == "V" else flat
    values = flat.tolist()
    if np.isfinite(flat).all():
        return values
    return [value if math.isfinite(value) else None for value in values]


_WORDS = {"b": "true or false", "i": "whole numbers", "u": "whole numbers"}


def _allowed(dtype: np.dtype) -> set[type]:
    """The types that the elements of a list may have."""
    return {"b": {bool}, "i": {int}, "u": {int}}.get(dtype.kind, {int, float})


def _flatten(name: str, data: Any, shape: tuple[int, ...]) -> list[Any]:
    """The elements of a list that is flat, or nested as `shape`."""
    if not isinstance(data, list):
        raise Refusal(f"input {name}: its data must be a list")
    if data and not isinstance(data[0], list):
        if len(data) != math.prod(shape):
            raise Refusal(
                f"input {name}: {len(data):,} elements are not the {math.prod(shape):,} of its shape"
            )
        return data
    level = [data]
    for length in shape:
        if set(map(type, level)) != {list} or set(map(len, level)) != {length}:
            raise Refusal(f"input {name}: its data must be flat, or nested as its shape")
        level = list(itertools.chain.from_iterable(level))
    return level
