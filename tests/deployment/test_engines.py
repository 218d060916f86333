"""Engines beside each other: the same outputs, and none is chosen that was not timed to be faster."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import jaxaccel as ja
from jaxaccel.core import runtime
from jaxaccel.deployment import bundle as bundles
from jaxaccel.deployment import onnx_engines
from jaxaccel.deployment.engine_times import time_engines
from jaxaccel.deployment.fastest_engine import EngineTime, FastestEngine, choose_engines
from jaxaccel.deployment.onnx_engines import open_onnxruntime, open_openvino
from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 3)),), (TensorSpec("logits", "float32", (None, 4)),))
WEIGHTS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
OPENED = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def product():
    """An ONNX model that multiplies by `WEIGHTS`."""
    inside = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    outside = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["logits"])
    graph = helper.make_graph([node], "product", [inside], [outside], [numpy_helper.from_array(WEIGHTS, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def row(engine, gain, batch=1, cores=2, length=0, noise=0.02):
    return EngineTime(engine, batch, length, cores, 1 / gain, gain, noise)


# ---- engines of ONNX models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENED)
def test_an_onnx_model_is_computed_in_float32(name):
    engine = OPENED[name](product(), SIGNATURE, [1, 4])
    x = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    assert engine.name == name and list(engine.batches) == [1, 4]
    np.testing.assert_allclose(engine.run({"x": x})["logits"], x @ WEIGHTS, atol=1e-6)
    with pytest.raises(UserError, match="x must be float32"):
        engine.run({"x": x.astype(np.float64)})


@pytest.mark.parametrize("name", OPENED)
def test_threads_do_not_mix_their_answers(name):
    engine, wrong = OPENED[name](product(), SIGNATURE, [2]), []

    def ask(seed):
        x = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
        for _ in range(50):
            if not np.allclose(engine.run({"x": x})["logits"], x @ WEIGHTS, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("content", [b"", b"no model"])
def test_what_is_no_model_is_one_line(name, content):
    with pytest.raises(UserError, match="refuses the model") as raised:
        OPENED[name](content, SIGNATURE, [1])
    assert "\n" not in str(raised.value)


# ---- the fastest ------------------------------------------------------------------------------------------------


def test_xla_stays_where_nothing_was_timed():
    assert choose_engines([], [1, 16], 2) == {1: "xla", 16: "xla"}


def test_the_fastest_is_chosen_for_each_size():
    times = [
        row("xla", 1),
        row("openvino", 0.5),
        row("onnxruntime", 1.5),
        row("xla", 1, 16),
        row("openvino", 3.0, 16),
    ]
    assert choose_engines(times, [1, 16], 2) == {1: "onnxruntime", 16: "openvino"}
    assert choose_engines(times, [2, 8, 64], 2) == {2: "onnxruntime", 8: "openvino", 64: "openvino"}


def test_a_gain_within_noise_is_none():
    assert choose_engines([row("xla", 1), row("openvino", 1.04, noise=0.05)], [1], 2) == {1: "xla"}
    assert choose_engines([row("xla", 1), row("openvino", 1.06, noise=0.05)], [1], 2) == {1: "openvino"}


def test_times_on_as_many_cores_count():
    times = [row("xla", 1, cores=1), row("openvino", 2, cores=1), row("xla", 1), row("openvino", 0.5)]
    assert choose_engines(times, [1], 1) == {1: "openvino"}
    assert choose_engines(times, [1], 2) == choose_engines(times, [1], 64) == {1: "xla"}


def test_lengths_are_averaged():
    short, long = row("openvino", 4.0, length=8), row("openvino", 0.5, length=32)
    assert choose_engines([row("xla", 1), short, long], [1], 2) == {1: "openvino"}
    assert choose_engines([row("xla", 1), dataclasses.replace(short, gain=1.5), long], [1], 2) == {1: "xla"}


def test_each_size_goes_to_its_engine():
    seen = []

    class Counted:
        signature, batches, name = SIGNATURE, [1, 4], "counted"

        def __init__(self, name):
            self.name = name

        def run(self, arrays):
            seen.append((self.name, len(arrays["x"])))
            return {"logits": arrays["x"] @ WEIGHTS}

    engine = FastestEngine({4: Counted("b"), 1: Counted("a")})
    x = np.ones((9, 3), np.float32)
    np.testing.assert_allclose(engine.run({"x": x})["logits"], x @ WEIGHTS)
    assert seen == [("b", 4), ("b", 4), ("a", 1)]
    assert engine.name == "a and b" and engine.batches == [1, 4]


# ---- bundles ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed(digits_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("timed") / "digits"
    return ja.export(digits_run.directory, place, batch=(1, 4))


def test_an_export_is_timed_on_one_core_and_on_all(timed):
    rows = [EngineTime.from_json(values) for values in timed.manifest.receipts["engines"]]
    assert {(x.batch, x.cores) for x in rows if x.engine == "xla"} >= {(1, 1), (4, 1)}
    assert all(x.milliseconds > 0 for x in rows)
    assert {x.gain for x in rows if x.engine == "xla"} == {1.0}


def with_times(place, tmp_path, processor, *rows):
    """A copy of a bundle that says that it was timed so."""
    copied = shutil.copytree(place, tmp_path / "copied")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["receipts"] |= {"processor": processor, "engines": [dataclasses.asdict(x) for x in rows]}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    return bundles.open_bundle(copied)


def test_times_of_another_processor_do_not_count(timed, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(onnx_engines.ENGINES, "openvino", lambda *args: asked.append(args))
    rows = row("xla", 1), row("openvino", 9)
    assert with_times(timed.place, tmp_path, "another one", *rows).engine().name == "xla"
    assert not asked


def test_an_engine_that_is_not_there_is_passed_over(timed, tmp_path):
    rows = row("xla", 1), row("openvino", 9)
    place = with_times(timed.place, tmp_path, runtime.find_processor(), *rows)
    place.manifest.models.pop("onnx", None)
    assert place.engine().name == "xla"


def test_a_process_that_cannot_time_says_why(tmp_path):
    with pytest.raises(UserError, match=r"cannot be timed on 1 cores: .*is not there"):
        time_engines(tmp_path / "none", cores=[1])


def test_an_engine_that_computes_something_else_is_refused(timed, digits_run, tmp_path, monkeypatch):
    """XLA's programs are compared before they are written; so is each engine of the ONNX model."""

    def open_wrong(content, signature, batches):
        engine = open_onnxruntime(content, signature, batches)
        right = engine.run
        engine.run = lambda arrays: {name: x + 1 for name, x in right(arrays).items()}
        return engine

    monkeypatch.setitem(onnx_engines.ENGINES, "openvino", open_wrong)
    made = ja.export(digits_run.directory, tmp_path / "odd", to=("onnx",), batch=(), timed=False)
    assert made.engine("onnxruntime").name == "onnxruntime"
    with pytest.raises(UserError, match=r"openvino does not compute .*odd: its result differs by"):
        made.engine("openvino")
    monkeypatch.setitem(onnx_engines.ENGINES, "onnxruntime", open_wrong)
    with pytest.raises(
        UserError, match="the ONNX model is not written, ONNX Runtime does not compute the model"
    ):
        ja.export(digits_run.directory, tmp_path / "wrong", to=("onnx",), batch=(), timed=False)


def test_openvino_reports_to_nobody():
    """Its import would fork a process that sends a report over the network."""
    code = f"""
import multiprocessing, sys
multiprocessing.Process.start = lambda self: print("forked")
from jaxaccel.deployment.onnx_engines import open_openvino
from jaxaccel.deployment.signature import Signature, TensorSpec
signature = Signature((TensorSpec("x", "float32", (None, 3)),), (TensorSpec("logits", "float32", (None, 4)),))
open_openvino(bytes({list(product())}), signature, [1])
import time; time.sleep(1)
print(sys.modules["openvino_telemetry"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "None\n", found.stdout + found.stderr
