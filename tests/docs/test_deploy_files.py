"""The files of `deploy/`: what they say is what the package has, and what Kubernetes asks of them."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from jaxaccel import cli
from jaxaccel.deployment.serving.server_options import ServerOptions
from jaxaccel.serve import ServeOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
if not DEPLOY.is_dir():
    pytest.skip("an installed package has no files to deploy", allow_module_level=True)


def read_instructions():
    """[(instruction, rest)] of the Dockerfile, its lines joined."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def read_service(name):
    found = yaml.safe_load((DEPLOY / name).read_text())
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", found["metadata"]["name"])
    return found["spec"]["predictor"]


def parse(words):
    return cli.parse_options("serve", "", ServeOptions(), words)


def test_the_image_installs_extras_that_exist_and_copies_what_the_package_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (install,) = [rest for word, rest in read_instructions() if word == "RUN"]
    named = re.search(r"'\.\[([\w,]+)\]'", install)[1].split(",")
    assert {*named} <= extras.keys()
    copied = [part for word, rest in read_instructions() if word == "COPY" for part in rest.split()[:-1]]
    for part in copied:
        assert part.startswith(("--", "/")) or (ROOT / part).exists(), part


def test_the_image_serves_on_all_addresses_as_a_user_without_rights():
    found = dict(read_instructions())
    assert int(found["USER"]) > 0
    entry, words = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    assert entry[:3] == ["python", "-m", "jaxaccel.serve"]
    assert parse(entry[3:] + words).host == "0.0.0.0"
    ports = [ServerOptions().port, ServerOptions().grpc_port]
    assert [int(port) for port in found["EXPOSE"].split()] == ports
    assert f":{ports[0]}/v2/health/ready" in found["HEALTHCHECK"]


def test_our_server_in_kserve():
    (container,) = read_service("kserve.yaml")["containers"]
    assert container["name"] == "kserve-container"  # which KServe asks for
    options = parse(container["args"])
    assert options.models == ("digits=/mnt/models",) and options.batching.max_batch == 32
    (port,) = container["ports"]
    assert port["name"] in ("http1", "h2c") and port["containerPort"] == options.port
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": options.port}
    assert {item["name"] for item in container["env"]} == {"STORAGE_URI"}
    assert container["securityContext"]["runAsNonRoot"]


def test_triton_in_kserve_is_given_a_repository():
    model = read_service("kserve-triton.yaml")["model"]
    assert model["modelFormat"] == {"name": "triton"} and model["protocolVersion"] == "v2"
    assert model["storageUri"].endswith("/triton")  # the folder of the bundle with the repository
