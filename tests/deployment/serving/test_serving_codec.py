"""Requests as bytes: every datatype there and back, and everything that is no request refused in one line."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_engines import Echo, Rows

from jaxaccel.deployment.serving.codec import InferRequest, decode_request, encode_response
from jaxaccel.deployment.serving.datatypes import DTYPES, NAMES, check_servable, decode_raw, encode_raw
from jaxaccel.deployment.serving.faults import Refusal
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError

LIMITS = Limits(body_mb=1, json_mb=0.1, elements=10_000, inputs=4)
SIGNATURE = Rows().signature
SAMPLES = {
    "BOOL": [True, False],
    "FP16": [0.5, -65504.0],
    "FP32": [1.5, -3.0e38],
    "FP64": [math.pi, 1e308],
    "BF16": [1.5, -2.0],
    "BYTES": [b"", "ä\0".encode()],
} | {
    name: [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    for name, dtype in DTYPES.items()
    if dtype.kind in "iu"
}


def sample(name):
    array = np.empty((2, 1), DTYPES[name])
    array[:, 0] = SAMPLES[name]
    return array


def message(**changed):
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    return {"inputs": [{k: v for k, v in (x | changed).items() if v is not ...}]}


def decode(body, size=None):
    return decode_request(
        body if isinstance(body, bytes) else json.dumps(body).encode(), size, SIGNATURE, LIMITS
    )


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("binary", [False, True])
def test_every_datatype_there_and_back(name, binary):
    array = sample(name)
    signature = Echo(str(array.dtype)).signature
    asked = InferRequest("7", {}, {"y": binary}, None)
    pieces, head = encode_response(asked, "m", "1", {"y": array})
    answer = json.loads(pieces[0])
    assert (head is None) != binary and answer["id"] == "7"
    (output,) = answer["outputs"]
    assert output["datatype"] == name and output["shape"] == [2, 1]
    body = json.dumps({"inputs": [output]}).encode()
    request = decode_request(body + b"".join(pieces[1:]), str(len(body)), signature, LIMITS)
    assert request.arrays["y"].dtype == array.dtype
    np.testing.assert_array_equal(request.arrays["y"], array)


def test_raw_bytes_are_little_endian():
    for name, dtype in DTYPES.items():
        if name not in ("BYTES", "BF16"):
            assert encode_raw(sample(name)) == sample(name).astype(dtype.newbyteorder("<")).tobytes()
    assert encode_raw(np.array([1.0], ml_dtypes.bfloat16)) == b"\x80\x3f"
    assert encode_raw(np.array([b"ab", b""], object)) == b"\2\0\0\0ab\0\0\0\0"
    assert decode_raw("x", encode_raw(np.arange(3.0)), np.dtype(">f8").newbyteorder("<"), (3,)).tolist() == [
        0,
        1,
        2,
    ]


def test_lists_may_be_flat_or_nested():
    flat = decode(message(shape=[2, 2], data=[1, 2, 3, 4.5])).arrays["x"]
    nested = decode(message(shape=[2, 2], data=[[1, 2], [3, 4.5]])).arrays["x"]
    np.testing.assert_array_equal(flat, nested)
    assert flat.dtype == np.float32 and flat.tolist() == [[1, 2], [3, 4.5]]


def test_what_json_has_no_number_for_is_null():
    asked = InferRequest("", {}, {"y": False}, None)
    array = np.array([1, np.nan, np.inf], np.float32)
    (body,), _ = encode_response(asked, "m", "1", {"y": array})
    assert json.loads(body)["outputs"][0]["data"] == [1.0, None, None]


def test_outputs_are_chosen_by_the_client():
    both = decode(message() | {"parameters": {"binary_data_output": True, "timeout": 2_500_000}})
    assert dict(both.outputs) == {"sum": True, "scaled": True} and both.timeout == 2.5
    one = decode(message() | {"outputs": [{"name": "scaled", "parameters": {"binary_data": True}}]})
    assert dict(one.outputs) == {"scaled": True} and one.timeout is None


BINARY = json.dumps(message(data=..., parameters={"binary_data_size": 16})).encode()
MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"inputs": "\xff"}',
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "NaN": json.dumps(message(data=[math.nan, 1, 2, 3])).encode(),
    "Infinity": json.dumps(message(data=[math.inf, 1, 2, 3])).encode(),
    "too many brackets": b'{"inputs":' + b"[" * 40_000,
    "too many digits": b'{"inputs": ' + b"9" * 20_000 + b"}",
    "too much JSON": b" " * 200_000 + json.dumps(message()).encode(),
    "no inputs": {},
    "inputs null": {"inputs": None},
    "inputs empty": {"inputs": []},
    "inputs an object": {"inputs": {"x": 1}},
    "an input a number": {"inputs": [1]},
    "too many inputs": {"inputs": message()["inputs"] * 5},
    "an input twice": {"inputs": message()["inputs"] * 2},
    "id a number": message() | {"id": 7},
    "id too long": message() | {"id": "i" * 200},
    "id with a line break": message() | {"id": "a\nb"},
    "no name": message(name=...),
    "name null": message(name=None),
    "name too long": message(name="x" * 200),
    "no datatype": message(datatype=...),
    "datatype unknown": message(datatype="FP31"),
    "datatype a list": message(datatype=["FP32"]),
    "no shape": message(shape=...),
    "shape a number": message(shape=4),
    "shape empty": message(shape=[]),
    "shape of texts": message(shape=["1", "4"]),
    "shape of booleans": message(shape=[True, 4]),
    "shape of fractions": message(shape=[1.0, 4]),
    "shape negative": message(shape=[-1, 4]),
    "shape with zero": message(shape=[0, 4], data=[]),
    "shape too large": message(shape=[1 << 40, 1 << 40]),
    "shape of too many axes": message(shape=[1] * 40),
    "too many elements": message(shape=[101, 100], data=[0] * 10_100),
    "no data": message(data=...),
    "data null": message(data=None),
    "data a text": message(data="1234"),
    "data an object": message(data={"0": 1}),
    "data too short": message(data=[1, 2, 3]),
    "data too long": message(data=[1, 2, 3, 4, 5]),
    "data ragged": message(shape=[2, 2], data=[[1, 2], [3]]),
    "data nested otherwise": message(shape=[2, 2], data=[[1, 2, 3, 4]]),
    "data nested too deeply": message(data=[[[1, 2, 3, 4]]]),
    "data half nested": message(shape=[2, 2], data=[[1, 2], 3, 4]),
    "data of texts": message(data=["1", 2, 3, 4]),
    "data of booleans": message(data=[True, 2, 3, 4]),
    "data of nulls": message(data=[None, 2, 3, 4]),
    "a number too large": message(data=[1e39, 2, 3, 4]),
    "an integer too large": message(data=[10**400, 2, 3, 4]),
    "out of int8": message(datatype="INT8", data=[128, 0, 0, 0]),
    "negative unsigned": message(datatype="UINT8", data=[-1, 0, 0, 0]),
    "a fraction for an integer": message(datatype="INT32", data=[1.5, 0, 0, 0]),
    "a number for BOOL": message(datatype="BOOL", data=[1, 0, 0, 0]),
    "a number for BYTES": message(datatype="BYTES", data=[1, 2, 3, 4]),
    "half a surrogate pair": b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}',
    "data and binary": message(parameters={"binary_data_size": 0}),
    "binary size negative": message(data=..., parameters={"binary_data_size": -1}),
    "binary size a text": message(data=..., parameters={"binary_data_size": "16"}),
    "binary size true": message(data=..., parameters={"binary_data_size": True}),
    "binary beyond the body": message(data=..., parameters={"binary_data_size": 16}),
    "parameters a list": message(parameters=[]) | {"parameters": [1]},
    "shared memory": message(data=..., parameters={"shared_memory_region": "r"}),
    "outputs an object": message() | {"outputs": {"name": "sum"}},
    "an output a text": message() | {"outputs": ["sum"]},
    "an output unknown": message() | {"outputs": [{"name": "total"}]},
    "an output twice": message() | {"outputs": [{"name": "sum"}, {"name": "sum"}]},
    "an output of classes": message() | {"outputs": [{"name": "sum", "parameters": {"classification": 3}}]},
    "an output shared": message()
    | {"outputs": [{"name": "sum", "parameters": {"shared_memory_region": "r"}}]},
    "binary a number": message() | {"outputs": [{"name": "sum", "parameters": {"binary_data": 1}}]},
    "timeout negative": message() | {"parameters": {"timeout": -1}},
    "timeout a text": message() | {"parameters": {"timeout": "1"}},
    "header a word": (BINARY + bytes(16), "many"),
    "header negative": (BINARY + bytes(16), "-1"),
    "header beyond the body": (BINARY + bytes(16), "100000"),
    "header endless": (BINARY + bytes(16), "9" * 5000),
    "header of other digits": (BINARY + bytes(16), "٣"),
    "header too small": (BINARY + bytes(16), "5"),
    "bytes too few": (BINARY + bytes(15), str(len(BINARY))),
    "bytes too many": (BINARY + bytes(17), str(len(BINARY))),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused(body):
    with pytest.raises(Refusal) as refused:
        decode(*(body if isinstance(body, tuple) else (body,)))
    assert 400 <= refused.value.kind.http < 500
    assert "\n" not in str(refused.value) and 10 < len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("name", "data", "shape"),
    [
        ("BOOL", b"\0\2", (2,)),
        ("FP32", b"\0" * 7, (2,)),
        ("BYTES", b"\1\0\0", (1,)),
        ("BYTES", b"\5\0\0\0ab", (1,)),
        ("BYTES", b"\0\0\0\0\0", (1,)),
        ("BYTES", b"\xff\xff\xff\xff", (1,)),
    ],
)
def test_bytes_that_are_no_tensor(name, data, shape):
    with pytest.raises(Refusal):
        decode_raw("x", data, DTYPES[name], shape)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), json_values)
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_place_is_answered_or_refused(place, value):
    _answered_or_refused(json.dumps(message(**{place: value})).encode(), None)


@given(
    st.lists(st.tuples(st.integers(0, len(BINARY) + 15), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
)
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_are_answered_or_refused(flips, cut):
    body = bytearray(BINARY + bytes(16))
    for at, value in flips:
        body[at] = value
    _answered_or_refused(bytes(body[: len(body) - cut]), str(len(BINARY)))


@given(st.binary(max_size=200), st.none() | st.text(max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_answered_or_refused(body, size):
    _answered_or_refused(body, size)


def _answered_or_refused(body, size):
    try:
        request = decode(body, size)
    except Refusal as refusal:
        assert 400 <= refusal.kind.http < 500
    else:
        assert all(array.size <= LIMITS.elements for array in request.arrays.values())


def test_a_model_of_other_types_is_not_served():
    assert set(NAMES.values()) == set(DTYPES)
    spec = TensorSpec("x", "float8_e4m3fn", (None,))
    with pytest.raises(UserError, match="x is float8_e4m3fn"):
        check_servable(Signature((spec,), ()))
