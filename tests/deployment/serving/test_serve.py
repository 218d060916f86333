"""The command: what it prints, its mistakes, its signals, TLS, and a bundle in place of an engine."""

import contextlib
import datetime
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from serving_engines import Rows, opener

import jaxaccel as ja
from jaxaccel import serve
from jaxaccel.deployment.serving import bundles
from jaxaccel.deployment.serving import open_inference_pb2 as messages
from jaxaccel.errors import UserError

PROGRAM = Path(__file__).with_name("serving_program.py")
X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


@contextlib.contextmanager
def started(*words, **environment):
    """(process, port of HTTP, port of gRPC) of the command once it is ready."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *words, "--port", "0", "--grpc-port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.search(r"ready: https?://\S+:(\d+), gRPC \S+:(\d+)", line):
                yield process, int(found[1]), int(found[2])
                return
        raise AssertionError(process.stderr.read())
    finally:
        process.kill()
        process.communicate()


def ask(port, path, body=None, scheme="http", **options):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}{path}", data, timeout=30, **options) as answer:
        return json.load(answer)


def test_sigterm_answers_what_was_asked_and_refuses_the_rest():
    with started("slow", SECONDS="1", JAXACCEL_TEST="1") as (process, port, _):
        found = []
        asked = threading.Thread(
            target=lambda: found.append(ask(port, "/v2/models/slow/infer", {"inputs": [X], "id": "a"}))
        )
        asked.start()
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            ask(port, "/v2/health/ready")
        asked.join()
        log = [json.loads(line) for line in process.communicate(timeout=30)[1].splitlines()]
    assert process.returncode == 0 and found[0]["outputs"][0]["data"] == [10.0]
    events = [line["event"] for line in log]
    assert events == ["loaded", "ready", "draining", "infer", "ended"]
    line = log[3]
    assert (line["status"], line["model"], line["protocol"], line["examples"]) == ("200", "slow", "http", 1)
    assert line["ms"] >= 1000 and len(line["request_id"]) == 32


def test_it_is_live_before_it_is_ready_and_a_signal_ends_the_loading():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = [str(PROGRAM), "slow", "--port", str(port), "--grpc-port", "0", "--log", "none"]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"SECONDS": "2"},
    )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                assert ask(port, "/v2/health/live") == {"live": True}
                break
            time.sleep(0.05)
        for path, body in (("/v2/health/ready", None), ("/v2/models/slow/infer", {"inputs": [X]})):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(port, path, body)
            assert refused.value.code == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "ready" not in process.stdout.read()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a certificate for this machine and of its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(address, False).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    format = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, format, plain))
    return folder / "cert.pem", folder / "key.pem"


def test_tls_on_both_ports(certificate, tmp_path):
    (tmp_path / "token").write_text("t" * 20 + "\n")
    tls = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    with started("rows", *tls, "--token-file", str(tmp_path / "token")) as (_, port, grpc_port):
        trusted = ssl.create_default_context(cafile=str(certificate[0]))
        assert ask(port, "/v2/health/ready", scheme="https", context=trusted) == {"ready": True}
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            ask(port, "/v2/health/ready")
        credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{grpc_port}", credentials) as channel:
            live = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerMetadata",
                response_deserializer=messages.ServerMetadataResponse.FromString,
            )
            assert (
                live(b"", timeout=10, metadata=(("authorization", f"Bearer {'t' * 20}"),)).name == "jaxaccel"
            )
            with pytest.raises(grpc.RpcError):
                live(b"", timeout=10)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a bundle to serve, or give --repository DIR"),
        (["nothing"], "nothing is no bundle"),
        (["a b=rows"], "'a b' cannot name a model"),
        (["../a=rows"], "'../a' cannot name a model"),
        (["a:0=rows"], "'0' cannot name a version"),
        (["a:1=rows", "a:1=rows"], "there are two models a:1"),
        (["rows", "--require-signature"], "--require-signature needs the public key: --key FILE"),
        (["slow", "--key", "k"], "slow is not signed by k"),
        (["slow", "--require-signature", "--key", "k"], "slow is not signed by k"),
        (["rows", "--tls-cert", "c"], "--tls-cert and --tls-key come together"),
        (["rows", "--tls-cert", "c", "--tls-key", "k"], "--tls-cert c cannot be read"),
        (["rows", "--tls-cert", __file__, "--tls-key", __file__], "--tls-cert and --tls-key cannot be used"),
        (["rows", "--token-file", "t"], "--token-file t cannot be read"),
        (["rows", "--token-file", os.devnull], "must have at least 16 characters"),
        (["--repository", "nowhere"], "there is no directory nowhere"),
        (["rows", "--max-batch", "0"], "--max-batch must be at least 1"),
        (["rows", "--port", "70000"], "--port must lie in [0, 65535]"),
        (["rows", "--engine", "tensorrt"], "invalid choice 'tensorrt'"),
        (["rows", "--host", "203.0.113.7"], "203.0.113.7:0 cannot be opened"),
        (["rows", "--prot", "1"], "did you mean --port?"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def verify(path, key):
        raise UserError(f"{path} is not signed by {key}")

    ports = [] if "--port" in words else ["--port", "0"]
    with pytest.raises(UserError) as error:
        serve.main(
            [*words, *ports, "--grpc-port", "0", "--log", "none"],
            opener({"rows": Rows(), "slow": Rows()}),
            verify,
        )
    assert says in error.value.as_flags() and "\n" not in str(error.value)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag, other in (("--port", "--grpc-port"), ("--grpc-port", "--port")):
            with pytest.raises(UserError) as error:
                serve.main(["rows", flag, port, other, "0", "--log", "none"], opener({"rows": Rows()}))
            assert f"choose another {flag}" in error.value.as_flags()


def test_a_bundle_is_opened_after_its_signature_was_checked(digits_run, tmp_path):
    made = ja.export(digits_run.directory, tmp_path / "digits", to=("bundle",), batch=(1,), timed=False)
    private, public = tmp_path / "key", tmp_path / "key.pub"
    key = ec.generate_private_key(ec.SECP256R1())
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    load = bundles.load_verified(bundles.open_served, bundles.verify, public)
    with pytest.raises(UserError, match="is not signed"):
        load(made.place, "xla")
    ja.deployment.sign_bundle(made.place, private)
    opened = load(made.place, "xla")
    assert opened.name == "digits" and opened.engine.name == "xla"
    assert opened.engine.run({"image": np.zeros((1, 8, 8, 1), np.uint8)})["logits"].shape == (1, 10)
    assert opened.predictor is not None
    with pytest.raises(UserError, match="is for tasks that read texts"):
        opened.predictor.describe("four", "")


def test_everybody_on_the_network_is_warned_of():
    with started("rows", "--host", "0.0.0.0", "--log", "errors") as (process, port, _):
        assert ask(port, "/v2/health/ready") == {"ready": True}
        process.send_signal(signal.SIGINT)
        assert "give --token-file" in process.communicate(timeout=30)[1]
