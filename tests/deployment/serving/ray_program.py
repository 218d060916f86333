"""Two replicas under load, killed one after the other: what clients saw, as JSON. ``ray_program.py BUNDLE``."""

import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request

import ray
from ray import serve
from ray.util.state import list_actors

from jaxaccel.deployment.serving.ray_serve import build

CLIENTS, SECONDS, RETRIES = 8, 30.0, 5
ADDRESS = "http://127.0.0.1:8123/v2/models/digits/infer"


def ask(value):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [value] * 64}
    body = json.dumps({"inputs": [tensor], "id": str(value)}).encode()
    with urllib.request.urlopen(ADDRESS, body, timeout=20) as answer:
        found = json.load(answer)
    assert found["id"] == str(value)
    return found["outputs"][0]["data"]


def is_close(answer, expected):
    """Batches of other sizes are other programs, which round otherwise."""
    return all(abs(a - b) < 1e-3 for a, b in zip(answer, expected, strict=True))


def find_replicas():
    """{id: process} of those that Ray calls alive."""
    actors = list_actors(filters=[("state", "=", "ALIVE")])
    return {actor["actor_id"]: actor["pid"] for actor in actors if "Replica" in actor["class_name"]}


def main(bundle):
    ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(http_options={"port": 8123})
    serve.run(build({"bundles": bundle, "replicas": "2", "engine": "xla"}))
    expected = {value: ask(value) for value in range(16)}
    counts = {"asked": 0, "again": 0, "lost": 0, "wrong": 0}
    lock, end = threading.Lock(), time.monotonic() + SECONDS

    def load(number):
        value = number
        while time.monotonic() < end:
            value = (value + 1) % 16
            answer = None
            for attempt in range(1 + RETRIES):
                try:
                    answer = ask(value)
                    break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    time.sleep(0.5)
                    with lock:
                        counts["again"] += attempt == 0
            with lock:
                counts["asked"] += 1
                counts["lost"] += answer is None
                counts["wrong"] += answer is not None and not is_close(answer, expected[value])

    threads = [threading.Thread(target=load, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    killed = set()
    for _ in range(2):
        time.sleep(4)
        alive = find_replicas()
        victim = next(actor for actor in alive if actor not in killed)
        killed.add(victim)
        os.kill(alive[victim], signal.SIGKILL)
        # The other one is killed once there are two again.
        while time.monotonic() < end and len({*find_replicas()} - killed) < 2:
            time.sleep(0.3)
    for thread in threads:
        thread.join()
    left = len({*find_replicas()} - killed)
    print(json.dumps(counts | {"killed": len(killed), "left": left}))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
