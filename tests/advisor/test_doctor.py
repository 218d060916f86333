import dataclasses
import json
import os
import subprocess
import sys

import pytest

from jaxaccel.advisor.findings import Facts, findings
from jaxaccel.doctor import summarize_facts

VERSIONS = {"python": "3.12.1", "jaxaccel": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
WELL = Facts(
    backend="cpu", error="", devices={"cpu": 1}, memory=2**34, cores=8, load=0.5, gpus=(), tpus=0,
    versions=VERSIONS, allocator="glibc keeps freed memory", cache="/cache", cache_error="",
    cache_size=10**7, cache_free=10**11, data_dir="/data", data_free=10**11, environment={},
    rates={"float32": 1e11, "bfloat16": 2e11, "copy": 1e10},
)  # fmt: skip
GPU = dataclasses.replace(WELL, backend="gpu", devices={"NVIDIA H100": 1}, gpus=("NVIDIA H100",))


def found(facts=WELL, **changes):
    return findings(dataclasses.replace(facts, **changes))


def test_nothing_to_find():
    assert found() == [] and found(GPU) == []


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"gpus": ("NVIDIA H100",)}, "runs on the CPU", "pip install 'jaxaccel[cuda]'"),
        ({"tpus": 4}, "runs on the CPU", "pip install 'jaxaccel[tpu]'"),
        (
            {"gpus": ("A100",), "environment": {"CUDA_VISIBLE_DEVICES": "-1"}},
            "CUDA_VISIBLE_DEVICES hides it",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        ({"backend": "", "devices": {}, "error": "no backend 'cuda'"}, "no device", "JAX_PLATFORMS"),
        ({"versions": VERSIONS | {"jax": "0.9.1", "jaxlib": "0.9.1"}}, "JAX 0.9.1", "'jax>=0.10.2,<0.12'"),
        ({"versions": VERSIONS | {"jax": "0.12.0", "jaxlib": "0.12.0"}}, "JAX 0.12.0", "'jax>=0.10.2,<0.12'"),
        ({"versions": VERSIONS | {"jaxlib": "0.11.0"}}, "jaxlib 0.11.0 does not belong", "pip install"),
        ({"versions": VERSIONS | {"flax": "source"}}, "not installed: flax", "pip install"),
        ({"imported": ("tensorflow",)}, "brought in tensorflow", "tensorflow"),
        ({"cache_error": "[Errno 13] Permission denied"}, "cannot be written", "JAXACCEL_CACHE=DIR"),
        ({"cache_free": 10**6}, "left for the compile cache", "JAXACCEL_CACHE=DIR"),
        ({"data_free": 10**6}, "left for data sets in /data", "TFDS_DATA_DIR=DIR"),
        ({"environment": {"JAX_DISABLE_JIT": "1"}}, "nothing is compiled", "unset JAX_DISABLE_JIT"),
        ({"environment": {"JAX_NUM_PROCESSES": "2"}}, "without JAX_COORDINATOR_ADDRESS", "set both"),
        ({"environment": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "75"}}, "not within (0, 1]", "0.9"),
    ],
)
def test_serious(changes, problem, remedy):
    first = found(**changes)[0]
    assert first.serious and problem in first.problem and remedy in first.remedy
    assert "\n" not in str(first)


@pytest.mark.parametrize(
    ("facts", "changes", "problem"),
    [
        (WELL, {"gpus": ("A100",), "environment": {"JAX_PLATFORMS": "cpu"}}, "as JAX_PLATFORMS=cpu says"),
        (WELL, {"cache": "none (JAXACCEL_CACHE=0)", "cache_error": "JAXACCEL_CACHE=0"}, "no compile cache"),
        (WELL, {"allocator": "left alone (JAXACCEL_ALLOCATOR=0)"}, "memory from the system"),
        (WELL, {"allocator": "glibc refused mallopt"}, "refused"),
        (WELL, {"load": 20.0}, "want 8 cores"),
        (WELL, {"rates": {"float32": 2e11, "bfloat16": 1e11}}, "bfloat16 is slower"),
        (WELL, {"data_free": 10**9}, "left for data sets"),
        (WELL, {"environment": {"JAX_DEBUG_NANS": "True"}}, "checked on the host"),
        (
            WELL,
            {"environment": {"XLA_FLAGS": "--xla_force_host_platform_device_count=64"}},
            "64 devices of 8 cores",
        ),
        (GPU, {"environment": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}}, "memory fragments"),
        (GPU, {"environment": {"XLA_PYTHON_CLIENT_PREALLOCATE": "no"}}, "neither true nor false"),
        (
            GPU,
            {"environment": {"JAX_NUM_PROCESSES": "4", "JAX_COORDINATOR_ADDRESS": "a:1"}},
            "4 processes and 1 GPUs",
        ),
    ],
)
def test_notes(facts, changes, problem):
    (only,) = found(facts, **changes)
    assert not only.serious and problem in only.problem and only.remedy


def test_serious_things_come_first():
    both = found(load=20.0, cache_error="full")
    assert [finding.serious for finding in both] == [True, False]


def test_a_variable_set_to_zero_is_not_set():
    assert found(environment={"JAX_DISABLE_JIT": "0", "JAX_ENABLE_X64": "false"}) == []


def test_summary_names_units():
    shown = summarize_facts(WELL)
    assert shown["matmul float32"] == "100 GFLOP/s" and shown["device copy"] == "10 GB/s"


def doctor(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "jaxaccel.doctor", *words],
        capture_output=True, text=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip


def test_command_json():
    done = doctor("--json")
    facts = json.loads(done.stdout)
    serious = [f for f in facts["findings"] if f["serious"]]
    assert done.returncode == int(bool(serious)), done.stderr
    assert facts["backend"] == "cpu" and facts["imported"] == []
    assert all(facts["rates"][name] > 0 for name in ("float32", "bfloat16", "copy"))


def test_command_fails_where_something_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    done = doctor("--no-rates", JAXACCEL_CACHE=str(tmp_path / "file" / "xla"))
    assert done.returncode == 1
    assert "WRONG: the compile cache cannot be written" in done.stdout
    assert "versions: python" in done.stdout and "│" not in done.stdout
