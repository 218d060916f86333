"""One data directory and one compile cache for all tests, so that digits is prepared and steps compile once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def pytest_configure(config):
    base = Path(
        os.environ.get("JAXACCEL_TEST_HOME") or Path(os.environ.get("TMPDIR", "/tmp")) / "jaxaccel-tests"
    )
    os.environ["JAXACCEL_TEST_HOME"] = str(base)
    os.environ["JAXACCEL_CACHE"] = str(base / "xla")
    os.environ["TFDS_DATA_DIR"] = str(base / "tfds")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("XLA_FLAGS", None)


def pytest_collection_modifyitems(items):
    if not os.environ.get("JAXACCEL_DATA_DIR"):
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason="JAXACCEL_DATA_DIR names no directory of data sets"))


@pytest.fixture
def run_train(tmp_path):
    """Runs `python -m jaxaccel.train WORDS` in `tmp_path`: (exit code, standard output, standard error)."""

    def run(*words, devices=1, env=None, wait=True, module="jaxaccel.train"):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | forced(devices) | (env or {}),
        )  # fmt: skip
        if not wait:
            return process
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


def forced(devices):
    """Environment of a process with that many CPU devices."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} if devices > 1 else {}
