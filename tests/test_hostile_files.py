"""Hostile and damaged files: one line or a right result, nothing run, memory bounded by the size of the file."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import hostile_files as hostile
import numpy as np
import pytest

from jaxaccel import torch_files
from jaxaccel.compress import unpack
from jaxaccel.errors import UserError
from jaxaccel.pretrained.files import read
from jaxaccel.transforms.calibrate import Calibration

READERS = {".packed": unpack, ".json": Calibration.load}
MANY = 4_000
LIMIT = 160 << 20
"""Bytes that a small file may take at the worst: what is allowed beside its size, and LZMA's window."""


def attempt(path, content):
    """The message, or what was read; fails where more than a line comes of it, or too much memory is taken."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found = READERS.get(path.suffix, read)(path)
    except UserError as error:
        found = str(error)
        assert found.startswith(str(path)) and found.isprintable() and len(found) < len(str(path)) + 300
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < LIMIT + 400 * len(content), peak
    return found


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A command that would leave a trace; PATH and the working directory are where it would."""
    monkeypatch.chdir(tmp_path)
    yield "touch canary"
    assert not (tmp_path / "canary").exists()


def test_the_good_ones_are_good(tmp_path):
    for name, content in hostile.valid().items():
        found = attempt(tmp_path / name, content)
        if name.endswith(".json"):
            assert found.ranges == {"dense": 1.5}
        else:
            np.testing.assert_array_equal(
                found["w"], [1, 2, 3, 4] if name == "a.packed" else np.zeros((2, 2))
            )


@pytest.mark.parametrize("name", hostile.valid())
@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 20))])
def test_damage(name, seed, tmp_path):
    good = attempt(tmp_path / name, hostile.valid()[name])
    for what, content in hostile.damaged(hostile.valid()[name], seed):
        found = attempt(tmp_path / name, content)
        assert isinstance(found, str | type(good)), what


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickles(form, tmp_path, canary):
    """The weights beside it are found, or the file is refused; nothing in between."""
    refused = set()
    for what, operations in hostile.pickle_programs(canary, MANY).items():
        content = (hostile.torch_zip if form == "zip" else hostile.torch_legacy)(
            hostile.program(operations, 4)
        )
        found = attempt(tmp_path / "a.pt", content)
        if isinstance(found, str):
            refused.add(what)
        else:
            assert list(found) == ["w"], what
            np.testing.assert_array_equal(found["w"], np.zeros((2, 2), np.float32))
    # What a training program may have kept beside its weights does no harm.
    assert not refused & {
        "os.system",
        "object",
        "build",
        "eval by getattr",
        "numpy loads",
        "object array",
        "colliding keys",
    }
    assert refused >= {"inst", "extension", "cyclic list", "nested lists", "marks", "wide arguments"}


def test_dictionaries_in_one_another(tmp_path):
    """A name for each way through them would be 2**60."""
    operations = hostile.pickle_programs("true", 1)["doubled dictionaries"]
    content = b"\x80\x02}" + hostile.text("model") + operations[1:-1] + b"s."
    assert "too many ways" in attempt(tmp_path / "a.pt", hostile.torch_zip(content))


@pytest.mark.parametrize("kind", ["archives", "headers", "packs", "foreign", "calibrations"])
def test_formats(kind, tmp_path, canary):
    suffix = {"packs": ".packed", "calibrations": ".json"}.get(kind, ".any")
    right = {"names above", "absolute name"}  # names are names, and nothing is unpacked to disk
    for what, content in getattr(hostile, kind)().items():
        found = attempt(tmp_path / f"a{suffix}", content)
        assert isinstance(found, str) != (what in right), (what, found)


@pytest.mark.parametrize("reader", [read, torch_files.read, unpack, Calibration.load])
def test_what_is_no_file(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "directory"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(UserError, match=said):
            reader(path)


def test_claims_out_of_proportion(tmp_path):
    said = attempt(tmp_path / "a.npz", hostile.zeros_in_npz(300))
    assert "claims 314," in said and "numpy.savez" in said
    assert attempt(tmp_path / "b.npz", hostile.zeros_in_npz(50))["w"].nbytes == 50 << 20
    assert "claims arrays of 5,368,709,120 bytes" in attempt(
        tmp_path / "a.packed", hostile.packs()["zeros claimed"]
    )


def test_work_is_bounded(tmp_path):
    """A hundred times as many operations under limits of processor time and memory that quadratic ones would burst."""
    program = (
        "import resource, sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import hostile_files as hostile\n"
        "from jaxaccel.errors import UserError\n"
        "from jaxaccel.pretrained.files import read\n"
        "path = pathlib.Path(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (100, 100))\n"
        "for what, operations in hostile.pickle_programs('true', 200_000).items():\n"
        "    path.write_bytes(hostile.torch_zip(hostile.program(operations, 4)))\n"
        "    try:\n"
        "        read(path)\n"
        "    except UserError:\n"
        "        pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "a.pt")],
        capture_output=True, text=True, check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) < 1_500_000  # kilobytes
