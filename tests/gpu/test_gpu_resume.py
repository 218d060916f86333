"""A run on a GPU that is killed and resumed ends with the bits of one that nothing disturbed.

`tests/end_to_end/test_resume.py` says more of it on the CPU. This run is longer, since a GPU would be done with that
one before it is killed.
"""

import json
import os
import signal
import time

import jax
import pytest
from exact import note

ON_A_GPU = jax.default_backend() == "gpu"
# A small network on digits: 21 steps an epoch, a checkpoint every four epochs.
WORDS = (
    "digits", "--model", "ConvNet(widths=(16,), hidden=16)", "--epochs", "80" if ON_A_GPU else "12",
    "--eval-every", "4", "--optimizer.ema", "0.9", "--steps-per-call", "2",
)  # fmt: skip


def describe(directory):
    result = json.loads((directory / "result.json").read_text())
    return {name: result[name] for name in ("state_sha256", "eval", "steps")}


@pytest.mark.slow
@pytest.mark.skipif(
    not ON_A_GPU and "JAXACCEL_TEST_ON_CPU" not in os.environ,
    reason="end_to_end/test_resume.py tests it on the CPU (JAXACCEL_TEST_ON_CPU=1 runs it there as well)",
)
def test_killed_and_resumed_bit_for_bit(run_train, tmp_path, request):
    code, _, err = run_train(*WORDS, "--name", "whole")
    assert code == 0, err
    directory = tmp_path / "runs" / "killed"
    process = run_train(*WORDS, "--name", "killed", wait=False)
    end = time.monotonic() + 120
    while not (directory / "checkpoints" / "84").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (directory / "result.json").exists(), "it ended before it was killed"
    code, out, err = run_train(*WORDS, "--name", "killed", "--resume")
    assert code == 0, err
    assert "resuming killed at step" in out
    whole, resumed = (describe(tmp_path / "runs" / name) for name in ("whole", "killed"))
    at = next(line for line in out.splitlines() if "resuming" in line)
    note(request, whole=whole, resumed=resumed, at=at)
    assert resumed == whole
