"""The protocol over gRPC, by stubs of grpcio."""

import asyncio
import threading
import time

import grpc
import grpc.aio
import numpy as np
import pytest
from serving_engines import Echo, Rows, running
from test_serve import started
from test_serving_codec import SAMPLES, sample

from jaxaccel.deployment.serving import open_inference_pb2 as messages
from jaxaccel.deployment.serving.batching import BatchOptions
from jaxaccel.deployment.serving.datatypes import DTYPES, decode_raw, encode_raw
from jaxaccel.deployment.serving.grpc_codec import CONTENTS
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.deployment.serving.sources import Opened

SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def stub(channel, name):
    method = SERVICE.methods_by_name[name]
    return channel.unary_unary(
        f"/inference.GRPCInferenceService/{name}",
        request_serializer=getattr(messages, method.input_type.name).SerializeToString,
        response_deserializer=getattr(messages, method.output_type.name).FromString,
    )


def call(server, name, message, **options):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return stub(channel, name)(message, timeout=options.pop("timeout", 30), **options)


def code(server, name, message, **options):
    with pytest.raises(grpc.RpcError) as refused:
        call(server, name, message, **options)
    assert "\n" not in refused.value.details() and "Traceback" not in refused.value.details()
    return refused.value.code().name


def request(*values, raw=True, **changed):
    data = np.asarray(values or [1, 2, 3, 4], np.float32).reshape(-1, 4)
    message = messages.ModelInferRequest(**{"model_name": "rows", "id": "mine"} | changed)
    tensor = message.inputs.add(name="x", datatype="FP32", shape=data.shape)
    if raw:
        message.raw_input_contents.append(data.tobytes())
    else:
        tensor.contents.fp32_contents.extend(data.ravel().tolist())
    return message


def outputs(answer):
    return {
        o.name: decode_raw(o.name, raw, DTYPES[o.datatype], tuple(o.shape))
        for o, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


@pytest.fixture(scope="module")
def server():
    models = {"rows": Rows(), "echo": Echo(*map(str, DTYPES.values()), shape=(None, 1))}
    with running(models, limits=Limits(body_mb=1, elements=10_000, inputs=16)) as server:
        yield server


def test_the_server_and_its_models_are_described(server):
    assert call(server, "ServerLive", messages.ServerLiveRequest()).live
    assert call(server, "ServerReady", messages.ServerReadyRequest()).ready
    assert call(server, "ModelReady", messages.ModelReadyRequest(name="rows", version="1")).ready
    assert call(server, "ServerMetadata", messages.ServerMetadataRequest()).name == "jaxaccel"
    about = call(server, "ModelMetadata", messages.ModelMetadataRequest(name="rows"))
    assert (about.name, list(about.versions), about.platform) == ("rows", ["1"], "jaxaccel_xla")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*about.inputs, *about.outputs)] == [
        ("x", "FP32", [-1, 4]),
        ("sum", "FP32", [-1]),
        ("scaled", "FP32", [-1, 4]),
    ]


@pytest.mark.parametrize("raw", [True, False])
def test_arrays_in_and_out(server, raw):
    answer = call(server, "ModelInfer", request(1, 2, 3, 4, 5, 6, 7, 8, raw=raw))
    assert (answer.model_name, answer.model_version, answer.id) == ("rows", "1", "mine")
    found = outputs(answer)
    assert found["sum"].tolist() == [10, 26] and found["scaled"].tolist() == [[3, 6, 9, 12], [15, 18, 21, 24]]
    one = request(1, 2, 3, 4, raw=raw)
    one.outputs.add(name="sum")
    assert outputs(call(server, "ModelInfer", one)).keys() == {"sum"}


@pytest.mark.parametrize("raw", [True, False])
def test_every_datatype(server, raw):
    message = messages.ModelInferRequest(model_name="echo")
    for name, dtype in DTYPES.items():
        tensor = message.inputs.add(name=f"in_{dtype}", datatype=name, shape=[2, 1])
        if raw:
            message.raw_input_contents.append(encode_raw(sample(name)))
        elif name in CONTENTS:
            getattr(tensor.contents, CONTENTS[name]).extend(SAMPLES[name])
    if not raw:  # FP16 and BF16 have no field
        assert code(server, "ModelInfer", message) == "INVALID_ARGUMENT"
        return
    found = outputs(call(server, "ModelInfer", message))
    for name, dtype in DTYPES.items():
        np.testing.assert_array_equal(found[f"out_{dtype}"], sample(name))


def _damaged():
    def damage(change):
        message = request()
        change(message)
        return message

    def unequal(m):
        m.inputs[0].contents.fp32_contents.append(1)
        del m.raw_input_contents[:]

    def out_of_range(m):
        del m.raw_input_contents[:]
        m.inputs[0].datatype = "INT8"
        m.inputs[0].contents.int_contents.extend([1, 2, 3, 400])

    def other_field(m):
        del m.raw_input_contents[:]
        m.inputs[0].contents.fp64_contents.extend([1, 2, 3, 4])

    return {
        "no inputs": damage(lambda m: m.ClearField("inputs")),
        "no contents": damage(lambda m: m.ClearField("raw_input_contents")),
        "too many contents": damage(lambda m: m.raw_input_contents.append(b"")),
        "both contents": damage(lambda m: m.inputs[0].contents.fp32_contents.append(1)),
        "too few elements": damage(unequal),
        "out of range": damage(out_of_range),
        "another field": damage(other_field),
        "too few bytes": damage(lambda m: m.raw_input_contents.__setitem__(0, b"123")),
        "twice": damage(lambda m: (m.inputs.append(m.inputs[0]), m.raw_input_contents.append(bytes(16)))),
        "too many": damage(lambda m: m.inputs.extend([m.inputs[0]] * 20)),
        "datatype": damage(lambda m: setattr(m.inputs[0], "datatype", "FP31")),
        "other datatype": damage(lambda m: setattr(m.inputs[0], "datatype", "INT32")),
        "name": damage(lambda m: setattr(m.inputs[0], "name", "y")),
        "long name": damage(lambda m: setattr(m.inputs[0], "name", "x" * 1000)),
        "no shape": damage(lambda m: m.inputs[0].ClearField("shape")),
        "negative": damage(lambda m: m.inputs[0].shape.__setitem__(0, -1)),
        "zero": damage(lambda m: m.inputs[0].shape.__setitem__(0, 0)),
        "huge": damage(lambda m: m.inputs[0].shape.__setitem__(0, 1 << 62)),
        "output": damage(lambda m: m.outputs.add(name="total")),
        "output twice": damage(lambda m: (m.outputs.add(name="sum"), m.outputs.add(name="sum"))),
        "timeout": damage(lambda m: setattr(m.parameters["timeout"], "string_param", "soon")),
        "shared memory": damage(
            lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r")
        ),
        "id": damage(lambda m: setattr(m, "id", "i" * 1000)),
    }


@pytest.mark.parametrize("message", _damaged().values(), ids=_damaged())
def test_what_is_malformed_is_told_in_one_line(server, message):
    assert code(server, "ModelInfer", message) == "INVALID_ARGUMENT"


def test_what_is_not_here_is_refused(server):
    assert code(server, "ModelInfer", request(model_name="none")) == "NOT_FOUND"
    assert code(server, "ModelInfer", request(model_version="2")) == "NOT_FOUND"
    assert code(server, "ModelMetadata", messages.ModelMetadataRequest(name="a\nb")) == "NOT_FOUND"
    assert code(server, "RepositoryIndex", messages.RepositoryIndexRequest()) == "PERMISSION_DENIED"
    assert code(server, "ModelInfer", request(*range(1_000_000))) == "RESOURCE_EXHAUSTED"


def test_bytes_that_are_no_message_harm_nobody(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for sent in (b"\xff" * 100, b"\x2a\xff\xff\xff\xff\x0f", bytes(1000)):
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError):
                infer(sent, timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/ModelStreamInfer")(b"", timeout=10)
        assert refused.value.code().name == "UNIMPLEMENTED"
    assert call(server, "ModelInfer", request()).id == "mine"


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_at_once_get_their_own_answers(count):
    async def work(port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            infer = stub(channel, "ModelInfer")
            return await asyncio.gather(*(infer(request(i, 2 * i, 0, 1, id=str(i))) for i in range(count)))

    words = ["--max-queue", str(count), "--limits.connections", str(count + 1), "--log", "none"]
    with started("rows", *words) as (_, _, port):
        for i, answer in enumerate(asyncio.run(work(port))):
            assert answer.id == str(i)
            assert outputs(answer)["scaled"].tolist() == [[3.0 * i, 6.0 * i, 0, 3]]


def test_who_cancels_and_who_is_late_frees_the_place():
    engine = Rows()
    with running({"rows": engine}, batching=BatchOptions(max_queue=1)) as server:
        engine.gate = threading.Event()
        batcher = server.registry.find("rows").batcher
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            infer = stub(channel, "ModelInfer")
            first = infer.future(request())
            _until(lambda: len(engine.counts) > 3)
            second = infer.future(request())
            _until(lambda: batcher.waiting == 1)
            assert code(server, "ModelInfer", request()) == "UNAVAILABLE"
            second.cancel()
            _until(lambda: batcher.waiting == 0)
            assert code(server, "ModelInfer", request(), timeout=0.1) == "DEADLINE_EXCEEDED"
            late = request()
            late.parameters["timeout"].int64_param = 50_000
            assert code(server, "ModelInfer", late) == "DEADLINE_EXCEEDED"
            _until(lambda: batcher.waiting == 0)
            engine.gate.set()
            assert first.result().id == "mine"


def test_a_token_is_asked_for():
    with running({"rows": Rows()}, token="s" * 16) as server:
        assert code(server, "ModelInfer", request()) == "UNAUTHENTICATED"
        wrong, right = ((("authorization", f"Bearer {c * 16}"),) for c in "xs")
        assert (
            code(server, "ServerMetadata", messages.ServerMetadataRequest(), metadata=wrong)
            == "UNAUTHENTICATED"
        )
        assert call(server, "ModelInfer", request(), metadata=right).id == "mine"
        assert call(server, "ServerReady", messages.ServerReadyRequest()).ready


def test_models_are_loaded_and_unloaded(tmp_path):
    (tmp_path / "one").mkdir()
    with running({}, lambda path, engine: Opened("one", Rows()), [], repository=tmp_path) as server:

        def index():
            rows = call(server, "RepositoryIndex", messages.RepositoryIndexRequest()).models
            return [(row.name, row.version, row.state) for row in rows]

        assert index() == [("one", "", "UNAVAILABLE")]
        call(server, "RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="one"))
        assert index() == [("one", "1", "READY")]
        assert outputs(call(server, "ModelInfer", request(model_name="one")))["sum"].tolist() == [10]
        call(server, "RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name="one"))
        load = messages.RepositoryModelLoadRequest(model_name="../one")
        assert code(server, "RepositoryModelLoad", load) == "NOT_FOUND"
        assert code(server, "ModelInfer", request(model_name="one")) == "NOT_FOUND"


def _until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
