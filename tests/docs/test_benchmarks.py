import importlib
import json
import subprocess
import sys
from pathlib import Path

import optax
import pytest
from grids import slow_but

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no benchmarks")
def test_train_step(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "train_step.py", "--quick", "--workload", "mlp", "--batch", "16",
         "--no-torch", "--out", tmp_path],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("train_step-mlp-*.json")
    record = json.loads(file.read_text())
    assert {"date", "device_kind", "cpu", "cores", "versions", "load_average"} <= record["machine"].keys()
    (cell,) = record["cells"]
    assert (cell["workload"], cell["batch_size"]) == ("mlp", 16) and cell["steps_per_call"] >= 1
    assert {row["name"] for row in cell["all"]} >= {"jaxaccel", "nnx.jit", "cached_partial"}
    assert cell["best"].keys() == {"jaxaccel", "nnx"}
    best = cell["best"]["jaxaccel"]
    assert 0 < best["min_ms"] <= best["median_ms"] <= best["max_ms"]
    assert best["examples_per_second"] == pytest.approx(16e3 / best["median_ms"])
    ratio = cell["best"]["nnx"]["median_ms"] / best["median_ms"]
    assert cell["times_as_fast_as"] == {"nnx": pytest.approx(ratio)}
    assert "× NNX" in done.stdout


@pytest.mark.parametrize(
    "script",
    slow_but(
        ["train_step.py", "channels.py"],
        ["train_step.py", "allocator.py", "startup.py", "precision.py", "models.py", "augment.py",
         "sparse_step.py", "channels.py", "freezing.py", "retargeted.py"],
    ),
)  # fmt: skip
def test_help_teaches(script):
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and f"python benchmarks/{script}" in done.stdout


@pytest.mark.slow
def test_models(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "models.py", "--models", "resnet20", "--batch", "2", "--image-size", "8",
         "--dtypes", "float32", "--rounds", "1", "--seconds", "0.001", "--out", tmp_path],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("models-*.json")
    record = json.loads(file.read_text())
    (row,) = record["rows"]
    assert (row["model"], row["image_size"], row["parameters"]) == ("resnet20", 8, 269_722)
    assert [program["name"] for program in row["programs"]] == ["infer float32", "train float32"]
    for program in row["programs"]:
        assert program["compile_seconds"] > 0
        assert program["images_per_second"] == pytest.approx(2e3 / program["median_ms"])


@pytest.mark.slow
def test_precision(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "precision.py", "--models", "mlp", "resnet20", "--batch", "2",
         "--repeats", "1", "--seconds", "0.001", "--no-rivals", "--out", tmp_path],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [
        json.loads(next(tmp_path.glob(f"precision-{name}-*.json")).read_text())
        for name in ("mlp", "resnet20")
    ]
    keys = {"date", "device_kind", "cpu", "versions", "load_average"}
    assert all(keys <= record["machine"].keys() for record in records)
    cells = [cell for record in records for cell in record["cells"]]
    assert [(cell["model"], cell["batch_size"]) for cell in cells] == [("mlp", 2), ("resnet20", 2)]
    for cell in cells:
        rows = {row["name"]: row for row in cell["variants"]}
        assert rows.keys() >= {
            "float32",
            "bfloat16",
            "int8 dynamic",
            "int8 static, folded",
            "int8 weight-only",
        }
        assert cell["failed"] == {} and {row["group"] for row in rows.values()} == {"jaxaccel"}
        reference = rows["float32"]
        assert reference["relative_error"] == 0 and reference["explained_share"] is None
        for row in rows.values():
            assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
            assert row["ratio"] == pytest.approx(row["median_ms"] / reference["median_ms"])
        # Narrow arithmetic leaves a trace in the numbers; so do weights of one byte in their size.
        assert rows["float32, folded"]["relative_error"] < 1e-5 < 1e-4 < rows["bfloat16"]["relative_error"]
        assert rows["int8 weight-only"]["explained_share"] == 0
        assert rows["int8 dynamic"]["weight_bytes"] < 0.3 * reference["weight_bytes"]
    mlp, resnet = ({row["name"]: row for row in cell["variants"]} for cell in cells)
    assert mlp["int8 dynamic"]["explained_share"] == mlp["bfloat16"]["explained_share"] == pytest.approx(1)
    assert resnet["bfloat16"]["explained_share"] < 0.01, "XLA:CPU has no bfloat16 convolutions"
    assert 0.5 < resnet["int8 dynamic"]["explained_share"] < 1, "narrow stages stay in float32"
    assert "× float32" in done.stdout


@pytest.mark.slow
def test_precision_layers(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "precision.py", "--layers", "--sites", "lstm gate", "depthwise 14", "1-D, 64",
         "--batch", "2", "--repeats", "1", "--seconds", "0.001", "--out", tmp_path],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("precision_layers-*.json")
    assert file.with_suffix(".png").stat().st_size > 5000
    sites = {entry["site"]: entry for entry in json.loads(file.read_text())["sites"]}
    forms = {name: {row["name"] for row in entry["forms"]} for name, entry in sites.items()}
    assert forms == {
        "dot lstm gate": {"float32", "bfloat16", "int8"},
        "conv mobilenet depthwise 14": {"float32", "bfloat16", "int8"},
        "conv 1-D, 64 channels": {"float32", "bfloat16", "int8", "int8 as channels last", "int8 as patches"},
    }
    for entry in sites.values():
        rows = {row["name"]: row for row in entry["forms"]}
        assert all(row["right"] for row in rows.values())
        times = {name: row["median_ms"] for name, row in rows.items() if name != "bfloat16"}
        assert times[entry["fastest"]] == min(times.values())
        cost = times[entry["choice"]] / min(times.values())
        assert entry["choice_over_fastest"] == pytest.approx(cost) and entry["slower"] == (cost > 1.1)
    choices = [entry["choice"] for entry in sites.values()]
    assert choices == ["int8", "float32", "int8 as channels last"], "what is chosen on the CPU"


def test_lowerings(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "lowerings.py", "--sites", "pool 2x2", "--batch", "1", "--repeats", "1",
         "--seconds", "0.001", "--out", tmp_path],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("lowerings-*.json")
    cases = json.loads(file.read_text())["cases"]
    assert len(cases) == 12 and file.with_suffix(".png").exists()
    for case in cases:
        assert case["forms"][0]["name"] == "xla" and len(case["forms"]) > 1
        assert case["choice"] in [form["name"] for form in case["forms"]]
        assert all(form["relative_error"] < 1e-5 for form in case["forms"])


@pytest.mark.slow
def test_augment(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "augment.py", "--quick", "--only", "horizontal_flip", "CIFAR",
         "--no-torch", "--no-training", "--out", tmp_path],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("augment-*.json")
    assert file.with_suffix(".png").stat().st_size > 5000
    cells = {cell["augmentation"]: cell for cell in json.loads(file.read_text())["cells"]}
    assert cells.keys() == {"horizontal_flip", "CIFAR"}
    for entry in cells.values():
        rows = entry["contenders"]
        assert (entry["size"], entry["batch_size"], entry["rounds"]) == (32, 32, 1)
        for row in rows.values():
            assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
            assert row["images_per_second"] == pytest.approx(32e3 / row["median_ms"])
        assert {"jaxaccel", "jaxaccel, uint8"} <= rows.keys()
    ratio = cells["CIFAR"]["times_as_fast_as"]["Pillow"]  # of one round, the ratio of the medians
    rows = cells["CIFAR"]["contenders"]
    assert ratio == pytest.approx(rows["Pillow"]["median_ms"] / rows["jaxaccel, uint8"]["median_ms"])
    assert "× Pillow" in done.stdout


def quick(script, out, *words):
    """The cells that a script writes."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--quick", *words, "--out", out],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.json")
    record = json.loads(file.read_text())
    assert record["quick"] and {"date", "cpu", "versions"} <= record["machine"].keys()
    return record["cells"]


def test_sparse_variants_can_be_made(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    made = importlib.import_module("sparse_step").variants(optax.sgd(1e-3))
    assert [v.name for v in made][:5] == ["plain", "gradual", "straight_through", "rigl", "fixed"]


@pytest.mark.slow
def test_sparse_step(tmp_path):
    (cell,) = quick("sparse_step.py", tmp_path)
    rows = cell["variants"]
    assert {"plain", "gradual", "straight_through", "rigl", "fixed"} <= rows.keys()
    for name, row in rows.items():
        assert ("step_changing" in row) == (name not in ("plain", "fixed"))
        assert 0 < row["step"]["min_ms"] <= row["step"]["median_ms"] <= row["step"]["max_ms"]
        # Of one round, the ratio of the medians.
        ratio = row["update"]["median_ms"] / rows["plain"]["update"]["median_ms"]
        assert row["update"]["over_plain"] == pytest.approx(ratio)
    assert rows["plain"]["sparsity"] == 0
    done = 3000 / 7500
    share = 0.8 * (1 - (1 - done) ** 3)
    for name in {"gradual", "jaxpruner"} & rows.keys():
        assert rows[name]["sparsity"] == pytest.approx(share, abs=0.01)
    for name in ("straight_through", "rigl", "fixed"):
        assert rows[name]["sparsity"] == pytest.approx(0.8, abs=0.02)


@pytest.mark.slow
def test_channels(tmp_path):
    (cell,) = quick("channels.py", tmp_path, "--no-torch")
    whole, left = cell["results"]["JAX"], cell["results"]["jaxaccel"]
    assert 0.3 < left["multiply_adds"] / whole["multiply_adds"] <= 0.5
    assert left["parameters"] < whole["parameters"] and left["error"] < 1e-5
    times = cell["latency"]["2"]
    ratio = times["JAX"]["median_ms"] / times["jaxaccel"]["median_ms"]
    assert times["jaxaccel"]["times_as_fast"] == pytest.approx(ratio)


@pytest.mark.slow
def test_freezing(tmp_path):
    (cell,) = quick("freezing.py", tmp_path)
    rows = {(row["frozen"], row["way"], row["step"]): row for row in cell["variants"]}
    assert len(rows) == 6
    parameters, head = 4 * 886, 4 * (8 * 10 + 10)  # bytes of their momentum
    for step in ("trainer's", "bare"):
        assert rows["nothing", "-", step]["over_nothing"] == 1
        assert parameters <= rows["nothing", "-", step]["optimizer_bytes"] <= parameters + 64
        for way in ("freeze", "multi_transform"):
            assert head <= rows["all but the head", way, step]["optimizer_bytes"] <= head + 64
        freeze, whole = rows["all but the head", "freeze", step], rows["nothing", "-", step]
        assert freeze["peak_bytes"] < whole["peak_bytes"]


@pytest.mark.slow
def test_retargeted(tmp_path):
    cells = quick("retargeted.py", tmp_path)
    assert [cell["network"] for cell in cells] == ["encoder", "small"]
    for cell in cells:
        xla, retargeted = cell["steps"]["XLA"], cell["steps"]["retargeted"]
        assert cell["times_as_fast"] == pytest.approx(xla["median_ms"] / retargeted["median_ms"])
        assert cell["losses"]["retargeted"] == pytest.approx(cell["losses"]["XLA"], rel=1e-3)
