"""The session on a GPU: its plan fits, its commands can be read, and what it found outlives it."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("an installed package has no benchmarks", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks.gpu_parts import SECONDS, Part, list_parts
from benchmarks.gpu_session import Session, find_data
from benchmarks.harness import collect_options
from benchmarks.options import Mistake, read_options

FULL, QUICK = (list_parts(Path("originals"), False, quick, "cuda") for quick in (False, True))
COMMANDS = {f"{part.name}{', quick' * (parts is QUICK)}": part for parts in (FULL, QUICK) for part in parts}


def test_the_plan_fits_and_has_every_part():
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--plan"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if " until " in line] == [part.name for part in FULL]
    total = sum(part.limit for part in FULL)
    assert last == f"at most {total} of {SECONDS} s" and total <= SECONDS <= 570
    assert not any("skipped" in line for line in lines if "cifar" not in line and "data" not in line)


def read_benchmark(name, *words):
    module = importlib.import_module(f"benchmarks.suite.{name}")
    read_options(name, "", collect_options(module.BENCHMARK), words)


def read_recipe(*words):
    from jaxaccel import cli

    cli.read("train", "", words)


def read_experiment(script, *words):
    from jaxaccel import cli

    cli.parse_options("script", "", importlib.import_module(Path(script).stem).Options, words)


def collect_tests(*words):
    words = [sys.executable, "-m", "pytest", "--co", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-500:]


def read_doctor(*words):
    done = subprocess.run(
        [sys.executable, "-m", "jaxaccel.doctor", "--help"], capture_output=True, text=True, timeout=60
    )
    assert all(word in done.stdout for word in words)


@pytest.mark.slow
@pytest.mark.parametrize("part", COMMANDS.values(), ids=COMMANDS)
def test_each_command_can_be_read(part, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    first, *words = part.words
    if first == "-c":
        compile(words[0], "-c", "exec")
    elif first == "-m":
        module, *words = words
        known = {"benchmarks": read_benchmark, "pytest": collect_tests, "jaxaccel.train": read_recipe}
        (known | {"jaxaccel.doctor": read_doctor})[module](*words)
    else:
        assert (ROOT / first).is_file()
        read_experiment(first, *words)


def test_the_data_set_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXACCEL_DATA_DIR", str(tmp_path))
    assert find_data(None) != tmp_path
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "labels.npz").touch()
    assert find_data(None) == find_data(tmp_path) == tmp_path.resolve()
    with pytest.raises(Mistake, match=r"--data .*none is no directory"):
        find_data(tmp_path / "none")
    skipped = {part.name: part.without for part in list_parts(None, False, False, "cuda") if part.without}
    assert skipped.keys() == {"data"} and "--data or JAXACCEL_DATA_DIR" in skipped["data"]
    assert not any(part.without for part in list_parts(None, True, False, "cuda"))


PARTS = [
    Part("good", 20, ["-c", "print(6 * 7)"]),
    Part("bad", 20, ["-c", "raise SystemExit(3)"]),
    Part("after bad", 20, ["-c", ""], needs="bad"),
    Part("absent", 0, ["-c", ""], without="no data"),
    Part("killed", 40, ["-c", "import os; os.kill(os.getpid(), 9)"]),
]


def read_summary(to):
    rows = [line.split("  ") for line in (to / "summary.txt").read_text().splitlines()]
    return {row[0].strip(): next(word.strip() for word in row[1:] if word) for row in rows}


def read_log(to, name):
    with tarfile.open(to / "results.tar.gz") as archive:
        return archive.extractfile(f"logs/{name}.txt").read().decode()


def test_one_bad_part_stops_no_other(tmp_path):
    slow = "import time; print('measured', flush=True); time.sleep(60)"
    # What the parts before have left is its own: so it begins with what little there is.
    parts = [*PARTS[:3], Part("endless", -53, ["-c", slow]), *PARTS[3:], Part("late", -40, ["-c", ""])]
    session = Session(parts, tmp_path / "out", tmp_path / "work", dict(os.environ))
    assert session.run() == 1
    assert read_summary(session.to) == {
        "good": "ok", "bad": "failed", "after bad": "skipped", "endless": "cut off", "absent": "skipped",
        "killed": "failed", "late": "skipped",
    }  # fmt: skip
    says = {name: outcome.says for name, outcome in session.outcomes.items()}
    assert says["bad"] == "with exit code 3" and says["after bad"] == "needs bad"
    assert says["absent"] == "no data" and says["late"] == "no time is left"
    assert read_log(session.to, "good") == "42\n" and read_log(session.to, "endless") == "measured\n"


def is_running(process):
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PROGRAM = """
import os, signal, sys
from pathlib import Path
from benchmarks.gpu_parts import Part
from benchmarks.gpu_session import Session, stop_session
to = Path(sys.argv[1])
endless = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
parts = [Part("good", 20, ["-c", "print(6 * 7)"]), Part("endless", 60, ["-c", endless]), Part("late", 20, ["-c", ""])]
signal.signal(signal.SIGTERM, stop_session)
sys.exit(Session(parts, to, to / "work", dict(os.environ)).run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_found_outlives_the_session(number, tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    session = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}
    )
    log = tmp_path / "work" / "logs" / "endless.txt"
    end = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()):
        assert session.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    running = int(log.read_text())
    session.send_signal(number)
    told = number == signal.SIGTERM
    assert session.wait(30) == (143 if told else -number)
    assert read_summary(tmp_path) == {
        "good": "ok", "endless": "cut off" if told else "running", "late": "waiting"
    }  # fmt: skip
    assert read_log(tmp_path, "good") == "42\n"
    if told:
        assert not is_running(running), "a part outlives its session"
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(running), signal.SIGKILL)
