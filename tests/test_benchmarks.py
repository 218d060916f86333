import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


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


@pytest.mark.parametrize("script", ["train_step.py", "allocator.py", "startup.py"])
def test_help_teaches(script):
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and f"python benchmarks/{script}" in done.stdout
