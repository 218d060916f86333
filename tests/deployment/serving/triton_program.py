"""Runs in a Python that has NVIDIA's tritonclient and ml_dtypes: asks a server by http, grpc, and asyncio in both ways.

Arguments: the ports of HTTP and of gRPC.
"""

import asyncio
import sys

import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

HTTP, GRPC = (f"127.0.0.1:{port}" for port in sys.argv[1:3])
DATATYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
    "BF16",
]
NUMPY = {"BYTES": "object", "BF16": "bfloat16"}


def inputs_of(kind, values, binary=True):
    x = np.asarray(values, np.float32).reshape(-1, 4)
    found = kind.InferInput("x", list(x.shape), "FP32")
    found.set_data_from_numpy(x, **({"binary_data": binary} if kind is tritonclient.http else {}))
    return x, [found]


def check(kind, client, binary=True, **options):
    x, inputs = inputs_of(kind, range(20), binary)
    if kind is tritonclient.http:
        options["outputs"] = [
            kind.InferRequestedOutput(name, binary_data=binary) for name in ("sum", "scaled")
        ]
    answer = client.infer("rows", inputs, request_id="r1", **options)
    np.testing.assert_array_equal(answer.as_numpy("sum"), x.sum(1))
    np.testing.assert_array_equal(answer.as_numpy("scaled"), 3 * x)
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "r1"


def check_metadata(kind, client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("rows")
    assert not client.is_model_ready("none")
    keywords = {} if kind is tritonclient.http else {"as_json": True}
    assert client.get_server_metadata(**keywords)["name"] == "jaxaccel"
    about = client.get_model_metadata("rows", **keywords)
    assert about["inputs"][0]["name"] == "x" and [int(n) for n in about["inputs"][0]["shape"]] == [-1, 4]


def check_datatypes(kind, client):
    inputs, arrays = [], {}
    for name in DATATYPES:
        if name == "BF16":
            array = np.array([[1.5, -2]], ml_dtypes.bfloat16)
        elif name == "BYTES":
            array = np.array([["a", "bc"]], object)
        else:
            array = np.array([[1, 0]], triton_to_np_dtype(name))
        dtype = NUMPY.get(name) or str(np.dtype(triton_to_np_dtype(name)))
        arrays[f"out_{dtype}"] = array
        inputs.append(kind.InferInput(f"in_{dtype}", [1, 2], name))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer("echo", inputs)
    for name, array in arrays.items():
        expected = array.astype(np.bytes_).astype(object) if array.dtype == object else array
        np.testing.assert_array_equal(answer.as_numpy(name), expected)


def check_mistakes(kind, client):
    for name, version, words in (("none", "", "no model none"), ("rows", "9", "no model rows of version 9")):
        try:
            client.infer(name, inputs_of(kind, range(4))[1], model_version=version)
        except InferenceServerException as error:
            assert words in error.message(), error.message()
        else:
            raise AssertionError(f"{name}:{version} was answered")


def check_repository(client):
    found = client.get_model_repository_index()
    names = [m["name"] for m in found] if isinstance(found, list) else [m.name for m in found.models]
    assert "rows" in names
    client.unload_model("rows")
    assert not client.is_model_ready("rows")
    client.load_model("rows")
    assert client.is_model_ready("rows")


def check_threads():
    with tritonclient.http.InferenceServerClient(HTTP, concurrency=16) as client:
        asked = [
            (i, client.async_infer("rows", inputs_of(tritonclient.http, [i] * 4)[1])) for i in range(200)
        ]
        for i, request in asked:
            assert request.get_result().as_numpy("sum").tolist() == [4 * i]


async def check_asyncio(kind, module, address):
    async with module.InferenceServerClient(address) as client:

        async def one(i):
            answer = await client.infer("rows", inputs_of(kind, [i] * 4)[1])
            assert answer.as_numpy("sum").tolist() == [4 * i]

        await asyncio.gather(*(one(i) for i in range(200)))


for kind, address in ((tritonclient.http, HTTP), (tritonclient.grpc, GRPC)):
    with kind.InferenceServerClient(address) as client:
        check_metadata(kind, client)
        check(kind, client)
        check(kind, client, timeout=5_000_000)
        check_datatypes(kind, client)
        check_mistakes(kind, client)
        check_repository(client)
        if kind is tritonclient.http:
            check(kind, client, binary=False)
            for name in ("gzip", "deflate"):
                check(kind, client, request_compression_algorithm=name, response_compression_algorithm=name)
        else:
            check(kind, client, compression_algorithm="gzip", client_timeout=5)
check_threads()
asyncio.run(check_asyncio(tritonclient.http, tritonclient.http.aio, HTTP))
asyncio.run(check_asyncio(tritonclient.grpc, tritonclient.grpc.aio, GRPC))
print("all is well")
