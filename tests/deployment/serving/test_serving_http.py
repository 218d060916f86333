"""The protocol over HTTP, by a server on a free port and Python's own client."""

import concurrent.futures
import gzip
import http.client
import json
import socket
import threading
import time
import zlib

import numpy as np
import pytest
from serving_engines import Describer, Echo, Rows, running
from test_serving_codec import MALFORMED

from jaxaccel.deployment.serving.batching import BatchOptions
from jaxaccel.deployment.serving.datatypes import DTYPES
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.deployment.serving.sources import Opened, Source

INFER = "/v2/models/rows/infer"


def ask(server, path, body=None, method=None, headers=None):
    """(status, headers, body) of an answer; JSON is parsed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    is_json = answer.headers["content-type"] == "application/json"
    return answer.status, answer.headers, json.loads(text) if is_json else text


def request(*values, **more):
    data = np.asarray(values or [1, 2, 3, 4], np.float32).reshape(-1, 4)
    x = {"name": "x", "shape": list(data.shape), "datatype": "FP32", "data": data.ravel().tolist()}
    return {"inputs": [x], **more}


@pytest.fixture(scope="module")
def server():
    models = {"rows": Rows(), "broken": Broken(), "echo": Echo(*map(str, DTYPES.values()))}
    with running(models, limits=Limits(body_mb=1, json_mb=0.1, elements=10_000, inputs=16)) as server:
        yield server


class Broken(Rows):
    def run(self, arrays):
        if arrays["x"].any():
            raise RuntimeError("a secret of the server")
        return super().run(arrays)


def test_the_server_and_its_models_are_described(server):
    assert ask(server, "/v2/health/live")[::2] == (200, {"live": True})
    assert ask(server, "/v2/health/ready")[::2] == (200, {"ready": True})
    _, _, about = ask(server, "/v2")
    assert about["name"] == "jaxaccel" and "binary_tensor_data" in about["extensions"]
    model = {
        "name": "rows",
        "versions": ["1"],
        "platform": "jaxaccel_xla",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [-1]},
            {"name": "scaled", "datatype": "FP32", "shape": [-1, 4]},
        ],
    }
    for path in ("/v2/models/rows", "/v2/models/rows/versions/1"):
        assert ask(server, path)[2] == model
        assert ask(server, f"{path}/ready")[0] == 200


def test_json_in_and_out(server):
    status, headers, answer = ask(server, INFER, request(1, 2, 3, 4, 5, 6, 7, 8, id="mine"))
    assert status == 200 and len(headers["x-request-id"]) == 32
    assert answer == {
        "model_name": "rows",
        "model_version": "1",
        "id": "mine",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [2], "data": [10.0, 26.0]},
            {"name": "scaled", "datatype": "FP32", "shape": [2, 4], "data": [3.0 * i for i in range(1, 9)]},
        ],
    }


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
def test_bytes_in_and_out(server, encoding):
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    size = {"binary_data_size": x.nbytes}
    inputs = [{"name": "x", "shape": [10, 4], "datatype": "FP32", "parameters": size}]
    outputs = [{"name": "scaled", "parameters": {"binary_data": True}}, {"name": "sum"}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    packed = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](
        head + x.tobytes()
    )
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Encoding": encoding}
    status, headers, body = ask(server, INFER, packed, headers=headers)
    assert status == 200 and headers["content-type"] == "application/octet-stream"
    size = int(headers["inference-header-content-length"])
    scaled, total = json.loads(body[:size])["outputs"]
    assert scaled["parameters"] == {"binary_data_size": x.nbytes} and "data" not in scaled
    np.testing.assert_array_equal(np.frombuffer(body[size:], np.float32).reshape(10, 4), 3 * x)
    assert total["data"] == x.sum(1).tolist()


def test_every_datatype(server):
    values = {
        name: [True, False] if name == "BOOL" else ["a", "b"] if name == "BYTES" else [0, 1]
        for name in DTYPES
    }
    inputs = [
        {"name": f"in_{dtype}", "shape": [1, 2], "datatype": name, "data": values[name]}
        for name, dtype in DTYPES.items()
    ]
    status, _, answer = ask(server, "/v2/models/echo/infer", {"inputs": inputs})
    assert status == 200
    assert {o["datatype"]: o["data"] for o in answer["outputs"]} == values


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_told_in_one_line(server, body):
    body, size = body if isinstance(body, tuple) else (body, None)
    headers = {"Inference-Header-Content-Length": size.encode()} if size else {}
    status, headers, answer = ask(server, INFER, body, headers=headers)
    assert 400 <= status < 500 and headers["x-request-id"]
    assert answer.keys() == {"error"} and "Traceback" not in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (INFER, request(1, 2, 3, 4) | {"inputs": [request()["inputs"][0] | {"name": "y"}]}, 400),
        (INFER, {"inputs": [request()["inputs"][0] | {"datatype": "FP64"}]}, 400),
        (INFER, {"inputs": [request()["inputs"][0] | {"shape": [2, 2]}]}, 400),
        (INFER, None, 404),  # GET
        ("/v2/models/none/infer", request(), 404),
        ("/v2/models/rows/versions/2/infer", request(), 404),
        ("/v2/models/rows/versions/..%2f..%2fetc/infer", request(), 404),
        ("/v2/models/%0d%0aX-Evil:%201/infer", request(), 404),
        ("/v2/models/" + "m" * 5000 + "/infer", request(), 404),
        ("/v2/models/none", None, 404),
        ("/v3", None, 404),
        ("/", None, 404),  # no --ui
        ("/v2/repository/index", {}, 403),  # no --repository
        ("/v2/repository/models/rows/unload", {}, 403),
    ],
)
def test_what_is_not_here_is_refused(server, path, body, status):
    found, headers, answer = ask(server, path, body)
    assert found == status or (body is None and path == INFER and found == 405)
    assert answer.keys() == {"error"} and "x-evil" not in headers


def test_no_secret_of_the_server_leaves_it(server, caplog):
    status, headers, answer = ask(
        server, "/v2/models/broken/infer", request(), headers={"x-request-id": "abc-1"}
    )
    assert status == 500 and "secret" not in answer["error"] and headers["x-request-id"] == "abc-1"
    (failed,) = [record for record in caplog.records if record.getMessage() == "failed"]
    assert failed.fields["request_id"] == "abc-1" and "a secret" in str(failed.exc_info[1])
    assert ask(server, INFER, request())[0] == 200


def test_too_large_a_body_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n".encode())
        assert b" 413 " in sock.recv(1000)
    status, _, _ = ask(server, INFER, gzip.compress(bytes(2_000_000)), headers={"Content-Encoding": "gzip"})
    assert status == 413, "a small body that becomes a large one"
    chunks = iter([bytes(600_000)] * 2)
    assert ask(server, INFER, chunks, method="POST")[0] == 413
    for encoding in ("br", "gzip"):
        assert ask(server, INFER, request(), headers={"Content-Encoding": encoding})[0] == 400


@pytest.mark.parametrize(
    "sent",
    [b"\0\1\2\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nA:" + b"b" * 100_000],
)
def test_what_is_no_http_harms_nobody(server, sent):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
        sock.sendall(sent)
        assert b" 400 " in sock.recv(1000)
    assert ask(server, INFER, request())[0] == 200


def test_pages_of_other_sites_may_not_ask(server):
    assert ask(server, INFER, request(), headers={"Origin": "https://elsewhere.example"})[0] == 403
    own = f"http://127.0.0.1:{server.http_port}"
    assert ask(server, INFER, request(), headers={"Origin": own})[0] == 200


def test_metrics_count_requests_and_batches(server):
    ask(server, INFER, request())
    _, headers, text = ask(server, "/metrics")
    assert headers["content-type"].startswith("text/plain")
    lines = text.decode().splitlines()
    for start in (
        'jaxaccel_requests_total{model="rows",protocol="http",status="200",version="1"}',
        'jaxaccel_requests_total{model="",protocol="http",status="404",version=""}',
        'jaxaccel_batch_examples_count{model="rows",version="1"}',
        'jaxaccel_queue_seconds_sum{model="rows",version="1"}',
        'jaxaccel_model_ready{model="rows",version="1"} 1.0',
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        assert float(line.split()[-1]) > 0 or "404" in start
    assert "none" not in text.decode(), "a client's words are no labels"


def test_many_clients_get_their_own_answers(server):
    def client(i):
        status, _, answer = ask(server, INFER, request(i, 2 * i, 0, 1, id=str(i)))
        return status, answer["id"], answer["outputs"][0]["data"]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for i, found in enumerate(pool.map(client, range(400))):
            assert found == (200, str(i), [3.0 * i + 1])


def test_a_busy_server_says_when_to_come_again():
    engine = Rows()
    with running({"rows": engine}, batching=BatchOptions(max_queue=2)) as server:
        engine.gate = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            first = pool.submit(ask, server, INFER, request())
            _until(lambda: 1 in engine.counts[3:])
            others = [pool.submit(ask, server, INFER, request()) for _ in range(2)]
            _until(lambda: server.registry.find("rows").batcher.waiting == 2)
            status, headers, answer = ask(server, INFER, request())
            assert status == 503 and headers["retry-after"] == "1" and "ask again" in answer["error"]
            engine.gate.set()
            assert [f.result()[0] for f in (first, *others)] == [200] * 3


def test_a_client_that_leaves_frees_its_place_and_bytes():
    engine = Rows()
    with running({"rows": engine}) as server:
        engine.gate = threading.Event()
        batcher = server.registry.find("rows").batcher
        body = json.dumps(request()).encode()
        sent = f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        socks = [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(3)]
        for sock in socks:
            sock.sendall(sent)
            _until(lambda: len(engine.counts) > 3)  # the first is on the device
        _until(lambda: batcher.waiting == 2)
        assert server.service.budget.held == 3 * len(body)
        for sock in socks:
            sock.close()
        _until(lambda: batcher.waiting == 0 and server.service.budget.held == 0)
        engine.gate.set()
        assert ask(server, INFER, request())[0] == 200


def test_deadlines():
    engine = Rows()
    with running({"rows": engine}, batching=BatchOptions(timeout_ms=200)) as server:
        engine.gate = threading.Event()
        begin = time.monotonic()
        assert ask(server, INFER, request() | {"parameters": {"timeout": 50_000}})[0] == 504
        assert ask(server, INFER, request())[0] == 504
        assert time.monotonic() - begin < 8
        engine.gate.set()
        assert ask(server, INFER, request())[0] == 200


def test_all_bodies_together_are_bounded_and_slow_ones_end():
    with running({"rows": Rows()}, limits=Limits(pending_mb=0.001, read_seconds=1)) as server:
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as sock:
            sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: 950\r\n\r\n".encode())
            _until(lambda: server.service.budget.held == 950)
            assert ask(server, INFER, request())[0] == 503
            assert b" 408 " in sock.recv(1000)
        _until(lambda: server.service.budget.held == 0)
        assert ask(server, INFER, request())[0] == 200


def test_a_token_is_asked_for():
    with running({"rows": Rows()}, token="s" * 16, ui=True) as server:
        for path in ("/v2", "/metrics", "/v2/models/rows", "/ui/models"):
            status, headers, _ = ask(server, path)
            assert status == 401 and headers["www-authenticate"] == "Bearer"
        for wrong in ("", "Bearer", "Bearer x", "Basic " + "s" * 16, "Bearer " + "s" * 17, "Bearer \xff"):
            assert ask(server, INFER, request(), headers={"Authorization": wrong})[0] == 401
        right = {"Authorization": "Bearer " + "s" * 16}
        assert ask(server, INFER, request(), headers=right)[0] == 200
        assert ask(server, "/v2/health/ready")[0] == ask(server, "/v2/health/live")[0] == 200


def test_models_and_versions_are_loaded_and_unloaded(tmp_path):
    for place in ("one", "two/1", "two/3", "not a name", "bad"):
        (tmp_path / place).mkdir(parents=True)

    def load(path, engine):
        place = path.relative_to(tmp_path).as_posix()
        if place == "bad":
            raise ValueError(f"{path} has a secret")
        return Opened(place, Rows(factor={"one": 1, "two/1": 10, "two/3": 30, "given": 5}[place]))

    (tmp_path / "given").mkdir()
    given = [Source(tmp_path / "given")]
    with running({}, load, given, repository=tmp_path) as server:

        def scaled(path):
            status, _, answer = ask(server, f"/v2/models/{path}/infer", request(1, 0, 0, 0))
            return answer["outputs"][1]["data"][0] if status == 200 else status

        def change(name, what):
            return ask(server, f"/v2/repository/models/{name}/{what}", {})[0]

        def index(**body):
            return {
                (r["name"], r["version"], r["state"]) for r in ask(server, "/v2/repository/index", body)[2]
            }

        names = {(n, "", "UNAVAILABLE") for n in ("one", "two", "bad")}
        assert index() == names | {("given", "1", "READY")} and index(ready=True) == {("given", "1", "READY")}
        assert scaled("two") == 404 and scaled("given") == 5
        assert change("two", "load") == 200
        assert (scaled("two"), scaled("two/versions/1"), scaled("two/versions/2")) == (30, 10, 404)
        (tmp_path / "two" / "3").rmdir()
        assert change("two", "load") == 200 and scaled("two") == 10 and scaled("two/versions/3") == 404
        assert change("two", "unload") == 200 and scaled("two") == 404 and change("two", "unload") == 404
        assert change("given", "unload") == 200 and change("given", "load") == 200 and scaled("given") == 5
        for name in ("..", "%2e%2e", "..%2f..%2fetc", "not%20a%20name", "none"):
            assert change(name, "load") == 404
        status, _, answer = ask(server, "/v2/repository/models/bad/load", {})
        assert status == 400 and "secret" not in answer["error"]
        assert ("bad", "", "UNAVAILABLE") in index()
        config = {"parameters": {"config": "{}"}}
        assert ask(server, "/v2/repository/models/one/load", config)[0] == 400


def test_a_model_is_replaced_without_a_failed_request(tmp_path):
    (tmp_path / "rows").mkdir()
    factors = iter(range(1, 100))
    with running(
        {}, lambda p, e: Opened("rows", Rows(factor=next(factors))), [], repository=tmp_path
    ) as server:
        path = "/v2/repository/models/rows/load"
        assert ask(server, path, {})[0] == 200
        stop, seen = threading.Event(), []

        def client():
            while not stop.is_set():
                status, _, answer = ask(server, INFER, request(1, 0, 0, 0))
                seen.append((status, answer.get("error") or answer["outputs"][1]["data"][0]))

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            assert ask(server, path, {})[0] == 200
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}, [s for s in seen if s[0] != 200][:3]
    assert len({factor for _, factor in seen}) > 1


def test_the_page_for_people():
    models = {"plain": Rows(), "full": Opened("full", Rows(), Describer())}
    with running(models, ui=True) as server:
        status, headers, page = ask(server, "/")
        assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
        assert b"http:" not in page and b"https:" not in page, "it works without a network"
        assert ask(server, "/ui/models")[2] == [{"name": "full", "version": "1"}]
        path = "/ui/models/full/versions/1"
        status, _, answer = ask(server, f"{path}?name=rose.jpg", b"\xff\xd8")
        assert status == 200 and answer["result"] == {
            "label": "file", "scores": {"file": 1.0}, "size": 2, "name": "rose.jpg",
        }  # fmt: skip
        assert answer["ms"] >= 0
        assert ask(server, path, "wörd".encode())[2]["result"]["size"] == 4
        for body, there, status in (
            (b"", path, 400),
            (b"\xff", path, 400),
            (b"a", path.replace("full", "plain"), 404),
        ):
            assert ask(server, there, body, method="POST")[0] == status


def _until(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
