"""The application of Ray Serve: a replica by itself, its arguments, and two of them that are killed under load."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving_engines import Rows
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

import jaxaccel as ja
from jaxaccel.deployment.serving import bundles
from jaxaccel.deployment.serving.faults import Refusal
from jaxaccel.deployment.serving.ray_serve import RayOptions, Replica, build, read_arguments
from jaxaccel.deployment.serving.sources import Opened
from jaxaccel.errors import UserError

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("JAXACCEL_RAY_PYTHON") or (sys.executable if importlib.util.find_spec("ray") else "")
X = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}


def test_a_replica_answers_as_the_server_does(monkeypatch):
    monkeypatch.setattr(bundles, "open_served", lambda path, engine: Opened(path.name, Rows()))
    replica = Replica(RayOptions(bundles="one,other=two"))

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with pytest.raises(Refusal, match="not ready"):
            await replica.check_health()
        await replica.reconfigure({})
        await replica.check_health()
        yield

    routes = [Route("/{rest:path}", replica.__call__, methods=["GET", "POST"])]
    app = Starlette(routes=routes, lifespan=lifespan)
    with TestClient(app) as client:
        for name in ("one", "other"):
            answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [X], "id": "7"})
            assert answer.status_code == 200 and answer.json()["id"] == "7"
            assert answer.json()["outputs"][0]["data"] == [10, 26]
            assert answer.headers["x-request-id"]
        assert client.get("/v2/health/ready").status_code == 200
        missing = client.post("/v2/models/none/infer", json={"inputs": [X]})
        assert missing.status_code == 404 and "there is no model none" in missing.json()["error"]


def test_arguments_are_texts():
    found = read_arguments({"bundles": "a,b=c", "replicas": "3", "max_delay_ms": "0.5", "key": "k.pem"})
    assert found == RayOptions(bundles="a,b=c", replicas=3, max_delay_ms=0.5, key=Path("k.pem"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bundle": "a"}, "there is no argument bundle: there are bundles, replicas"),
        ({"bundles": "a", "replicas": "two"}, "replicas=two is none of its kind, such as 1"),
        ({"bundles": "a", "replicas": "0"}, "replicas"),
        ({"bundles": "a", "engine": "tensorrt"}, "engine"),
        ({}, "name what to serve"),
    ],
)
def test_mistakes_are_one_line(given, said):
    with pytest.raises(UserError, match=said):
        read_arguments(given)


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install"):
        build({"bundles": "a"})


@pytest.mark.skipif(
    not PYTHON, reason="JAXACCEL_RAY_PYTHON names no Python with ray[serve], and this one has none"
)
def test_replicas_that_are_killed_lose_no_request(digits_run, tmp_path):
    bundle = ja.export(
        digits_run.directory, tmp_path / "digits", to=("stablehlo",), batch=(1, 8), timed=False
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("ray_program.py")), str(bundle.place)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert (found["lost"], found["wrong"], found["killed"], found["left"]) == (0, 0, 2, 2), done.stderr[
        -2000:
    ]
    assert found["asked"] > 100
