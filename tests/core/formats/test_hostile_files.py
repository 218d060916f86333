"""Hostile and damaged files: one line or a right result, nothing run, memory bounded by the size of the file."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import hostile_files as hostile
import hostile_pickles as pickles
import numpy as np
import pytest

from jaxaccel.core.formats import torch_files
from jaxaccel.data.images import decode_image
from jaxaccel.errors import UserError
from jaxaccel.models.pretrained.files import read
from jaxaccel.transforms.calibrate import Calibration
from jaxaccel.transforms.params.load import load as load_params

READERS = {".packed": load_params, ".json": Calibration.load}
MANY = 2_000
LIMIT = 120 << 20
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
    for what, operations in pickles.pickle_programs(canary, MANY).items():
        content = (pickles.torch_zip if form == "zip" else hostile.torch_legacy)(
            pickles.program(operations, 4)
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
    operations = pickles.pickle_programs("true", 1)["doubled dictionaries"]
    content = b"\x80\x02}" + pickles.text("model") + operations[1:-1] + b"s."
    assert "too many ways" in attempt(tmp_path / "a.pt", pickles.torch_zip(content))


@pytest.mark.parametrize("kind", ["archives", "headers", "packs", "foreign", "calibrations"])
def test_formats(kind, tmp_path, canary):
    suffix = {"packs": ".packed", "calibrations": ".json"}.get(kind, ".any")
    right = {"names above", "absolute name"}  # names are names, and nothing is unpacked to disk
    for what, content in getattr(hostile, kind)().items():
        found = attempt(tmp_path / f"a{suffix}", content)
        assert isinstance(found, str) != (what in right), (what, found)


@pytest.mark.parametrize("reader", [read, torch_files.read, load_params, Calibration.load])
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
    said = attempt(tmp_path / "a.npz", hostile.zeros_in_npz(70))
    assert "claims to hold 73,4" in said and "numpy.savez" in said
    assert attempt(tmp_path / "b.npz", hostile.zeros_in_npz(20))["w"].nbytes == 20 << 20
    assert "claims arrays of 5,368,709,120 bytes" in attempt(
        tmp_path / "a.packed", hostile.packs()["zeros claimed"]
    )


def test_pictures(canary, monkeypatch):
    """None is decoded: of 900 megapixels by the header, and none by a program."""
    from PIL import EpsImagePlugin, Image

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("started Ghostscript"))
    for kind, content in hostile.pictures().items():
        tracemalloc.start()
        kinds = (ValueError, Image.DecompressionBombError, Image.UnidentifiedImageError)
        with pytest.raises(kinds, match=r"pixels|identify"):
            decode_image(content, 3)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 << 20, kind


QUADRATIC = (
    *("integers of many bits as keys", "colliding keys", "a long key again and again", "two long keys"),
    *("long globals", "bytes again and again", "wide arguments", "wide sets", "wide shapes", "memo"),
    *("nested lists", "nested tuples as key", "marks"),
)


@pytest.mark.parametrize(
    ("many", "some"), [(100_000, QUADRATIC), pytest.param(400_000, None, marks=pytest.mark.slow)]
)
def test_work_is_bounded(many, some, tmp_path):
    """Pickles of megabytes under a limit of processor time that work in the square of their length would exceed."""
    program = (
        "import json, resource, sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import hostile_pickles as pickles\n"
        "from jaxaccel.errors import UserError\n"
        "from jaxaccel.core.formats.torch_files import read\n"  # which needs no JAX
        "path, some = pathlib.Path(sys.argv[2]), json.loads(sys.argv[4])\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (300, 300))\n"
        "for what, operations in pickles.pickle_programs('true', int(sys.argv[3])).items():\n"
        "    if some and what not in some:\n"
        "        continue\n"
        "    path.write_bytes(pickles.torch_zip(pickles.program(operations, 4)))\n"
        "    try:\n"
        "        read(path)\n"
        "    except UserError:\n"
        "        pass\n"
        # Not ru_maxrss, which begins with that of the process that started this one.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])\n"
    )
    words = (program, str(Path(__file__).parent), str(tmp_path / "a.pt"), str(many), json.dumps(some))
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) < 500_000  # kilobytes
