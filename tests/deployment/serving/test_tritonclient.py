"""NVIDIA's tritonclient, in a Python of its own that JAXACCEL_TRITON_PYTHON names, against the command."""

import os
import subprocess
from pathlib import Path

import pytest
from test_serve import started

PYTHON = os.environ.get("JAXACCEL_TRITON_PYTHON")


@pytest.mark.skipif(
    not PYTHON, reason="JAXACCEL_TRITON_PYTHON names no Python with tritonclient[http,grpc] and ml_dtypes"
)
def test_every_client_of_triton(tmp_path):
    program = Path(__file__).with_name("triton_program.py")
    with started("rows", "echo", "--repository", str(tmp_path)) as (_, http, grpc):
        done = subprocess.run(
            [PYTHON, str(program), str(http), str(grpc)], capture_output=True, text=True, timeout=120,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, check=False,
        )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "all is well", done.stderr[-3000:]
