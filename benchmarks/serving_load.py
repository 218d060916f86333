"""Load for a server: requests that come at random moments, whether or not those before are answered (an open loop)."""

import asyncio
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import Mistake
from benchmarks.serving_server import FEATURES

INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server is."""

    process: subprocess.Popen[str]
    http: int
    grpc: int


@contextlib.contextmanager
def running_server(model: str, max_batch: int, delay_ms: float) -> Iterator[Place]:
    """A server in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.serving_server", model, "--port", "0", "--grpc-port", "0",
        "--max-batch", str(max_batch), "--max-delay-ms", str(delay_ms), "--log", "errors", "--max-queue", "256",
    ]  # fmt: skip
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"ready: http://\S+:(\d+), gRPC \S+:(\d+)", line):
                yield Place(process, int(found[1]), int(found[2]))
                return
        raise Mistake("the server did not start: python -m benchmarks.serving_server mlp says why")
    finally:
        process.terminate()
        process.wait(30)


def time_arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Seconds at which the requests of a Poisson process come that has as many as the rate says."""
    count = max(1, round(rate * seconds))
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, count))


async def load_openly(port: int, model: str, arrivals: Sequence[float]) -> tuple[list[float], int, float]:
    """Sends requests by gRPC at their times.

    Args:
      port: of gRPC.
      model: its name.
      arrivals: seconds from the start.

    Returns:
      Seconds from the time at which each was due to its answer, of those that were answered; how many were refused; and
      the seconds from the first one due to the last answer.
    """
    import grpc.aio

    from jaxaccel.deployment.serving import open_inference_pb2 as messages

    latencies: list[float] = []
    refused = 0
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(
            INFER, request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )  # fmt: skip
        request = messages.ModelInferRequest(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=[1, FEATURES])
        request.raw_input_contents.append(np.ones(FEATURES, np.float32).tobytes())

        async def send(due: float) -> None:
            nonlocal refused
            try:
                await infer(request, timeout=30)
                latencies.append(loop.time() - due)
            except grpc.aio.AioRpcError:
                refused += 1

        await infer(request, timeout=30)
        begin, tasks = loop.time() + 0.05, []
        for arrival in arrivals:
            due = begin + float(arrival)
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(send(due)))
        await asyncio.gather(*tasks)
        return latencies, refused, loop.time() - begin


def time_calls(place: Place, protocol: str, count: int) -> list[float]:
    """Seconds of calls one after another, by one client that keeps its connection."""
    import http.client

    import grpc

    x = np.ones((1, FEATURES), np.float32)
    if protocol == "gRPC":
        from jaxaccel.deployment.serving import open_inference_pb2 as messages

        with grpc.insecure_channel(f"127.0.0.1:{place.grpc}") as channel:
            infer = channel.unary_unary(
                INFER, request_serializer=messages.ModelInferRequest.SerializeToString,
                response_deserializer=messages.ModelInferResponse.FromString,
            )  # fmt: skip
            request = messages.ModelInferRequest(model_name="nothing")
            request.inputs.add(name="x", datatype="FP32", shape=x.shape)
            request.raw_input_contents.append(x.tobytes())
            return [_time(lambda: infer(request)) for _ in range(count)]
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
    if protocol == "HTTP, JSON":
        body, headers = json.dumps({"inputs": [tensor | {"data": x.ravel().tolist()}]}).encode(), {}
    else:
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        body, headers = head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    connection = http.client.HTTPConnection("127.0.0.1", place.http)

    def call() -> None:
        connection.request("POST", "/v2/models/nothing/infer", body, headers)
        connection.getresponse().read()

    return [_time(call) for _ in range(count)]


def _time(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def read_batches(place: Place) -> tuple[float, float]:
    """How many batches the server has computed, and how many examples were in them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{place.http}/metrics") as answer:
        text = answer.read().decode()
    found = [
        re.search(rf"^jaxaccel_batch_examples_{what}{{.*}} (\S+)$", text, re.M) for what in ("count", "sum")
    ]
    count, total = (float(match[1]) if match else 0.0 for match in found)
    return count, total


def read_memory(place: Place) -> float:
    """Megabytes that the server holds in memory."""
    pages = int(Path(f"/proc/{place.process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6
