"""The parts of a session on a GPU, the most important first: `benchmarks/gpu.sh` runs them.

Its own limit is what a part needs on a GPU of 2022 or later, compiling included. `gpu_session` gives it in addition
what the parts before have left.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

WORK = "build/gpu-session"
"""Where logs, runs and the records of a quick session lie, from the root of the repository."""
NOTES = f"{WORK}/notes.jsonl"
"""What the tests found, a line each."""
SECONDS = 570
"""That all parts may take."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One command with its own limit and log."""

    name: str
    limit: int
    """Seconds."""
    words: Sequence[str]
    """What Python is given."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: str = ""
    """The part without which this one is skipped."""
    without: str = ""
    """Why it cannot run here; nothing if it can."""

    def format_command(self) -> str:
        """Formats the command as a line for a shell."""
        named = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*named, shlex.join(["python", *self.words])])


def list_parts(data: Path | None, prepared: bool, quick: bool, platform: str) -> list[Part]:
    """Lists the parts in their order.

    Args:
      data: directory with the original files of CIFAR-10, if any.
      prepared: whether CIFAR-10 was prepared before.
      quick: whether all is as small as can be.
      platform: what JAX_PLATFORMS is to be.
    """
    downloads = [] if data is None else [str(data)]
    absent = (
        "" if data or prepared else "no CIFAR-10 at hand: name its directory by --data or JAXACCEL_DATA_DIR"
    )
    return [
        Part("doctor", 20, ["-m", "jaxaccel.doctor", "--json"]),
        _test("values", 90, ["test_gpu_values.py", "test_gpu_gradients.py"], 2 if quick else 8, quick, platform),
        _benchmark("train_step", "train_step", 50, TRAIN_STEP, TRAIN_STEP_QUICK, quick),
        _benchmark("resnet50", "precision", 50, ["--models", "resnet50", *PRECISION], PRECISION_QUICK, quick),
        _benchmark("vit_s16", "precision", 35, ["--models", "vit_s16", *PRECISION], None, quick),
        _benchmark("mobilenet_v2", "precision", 30, ["--models", "mobilenet_v2", *PRECISION], None, quick),
        Part("data", 40, ["-c", PREPARE, *downloads], without=absent),
        Part(
            "cifar10_fast", 100,
            ["experiments/cifar10_fast.py", *(["--downloads", *downloads] if data else []), *_fast(quick)],
            needs="data",
        ),
        Part("cifar10_resnet20", 30, ["-m", "jaxaccel.train", *_resnet20(quick, downloads)], needs="data"),
        _test("resume", 40, ["test_gpu_resume.py"], 0, False, platform),
        _benchmark("replicas", "replicas", 25, ["--recipes", "digits", *BRIEF], ["--recipes", "digits"], quick),
        _benchmark("lowerings", "lowerings", 20, LOWERINGS, ["--sites", "pool 7x7"], quick),
        _benchmark("retargeted", "retargeted", 20, RETARGETED, ["--batch", "4"], quick),
    ]  # fmt: skip


COMPILED_QUICKLY = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
BRIEF = ["--rounds", "3", "--seconds", "0.2"]
TRAIN_STEP = [
    "--workload", "cifar", "mnist", "mlp", "--batch", "256", "--rounds", "5", "--seconds", "0.2", "--budget", "5",
    "--without", "missing",
]  # fmt: skip
TRAIN_STEP_QUICK = ["--workload", "mlp", "--without", "missing"]
VARIANTS = ["bfloat16", "int8 dynamic", "int8 static, folded, retargeted", "int8 weight-only"]
# PyTorch and ONNX Runtime of this benchmark compute on the processor alone.
PRECISION = [
    "--variants", *VARIANTS, "--batch", "128", "--rounds", "7", "--seconds", "0.1", "--budget", "5",
    "--without", "torch", "missing",
]  # fmt: skip
PRECISION_QUICK = ["--models", "mlp", "--variants", *VARIANTS, "--without", "torch", "missing"]
LOWERINGS = [
    "--sites", "resnet20", "--batch", "128", "--rounds", "3", "--seconds", "0.02", "--budget", "1",
]  # fmt: skip
RETARGETED = ["--networks", "resnet20", "encoder", "--batch", "128", *BRIEF]
PREPARE = """\
import pathlib, sys, jaxaccel as ja
downloads = pathlib.Path(sys.argv[1]) if sys.argv[1:] else None
print(len(ja.data.open("cifar10", "train", downloads=downloads)), "examples")
"""


def _benchmark(
    name: str, benchmark: str, limit: int, words: Sequence[str], small: Sequence[str] | None, quick: bool
) -> Part:
    """Makes a part of a benchmark. Without `small` words it is left out of a quick session."""
    if quick:
        without = "another part shows quickly enough that this works" if small is None else ""
        words = ["--quick", *(small or words), "--output", f"{WORK}/records"]
        return Part(name, limit, ["-m", "benchmarks", benchmark, *words], COMPILED_QUICKLY, without=without)
    return Part(name, limit, ["-m", "benchmarks", benchmark, *words])


def _test(name: str, limit: int, files: Sequence[str], workers: int, few: bool, platform: str) -> Part:
    """Makes a part of tests, which share the GPU between so many processes; `few` takes the everyday ones alone."""
    which = "not slow" if few else "slow or not slow"
    words = ["-vv", "-rxX", "--tb=short", "-n", str(workers), "-m", which, *(f"tests/gpu/{f}" for f in files)]
    environment = {
        "JAXACCEL_TEST_PLATFORM": platform, "JAXACCEL_TEST_NOTES": NOTES, "JAXACCEL_TEST_ON_CPU": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }  # fmt: skip
    return Part(name, limit, ["-m", "pytest", *words], environment)


def _fast(quick: bool) -> list[str]:
    """Gives the options of the run to 94%: as many seeds as there is time for."""
    if not quick:
        return ["--runs", "20", "--seconds", "75", "--out", "experiments/results/cifar10_fast-gpu.json"]
    small = ["--widths", "4", "4", "4", "--batch-size", "500", "--epochs", "0.02", "--tta", "none"]
    return [*small, "--out", f"{WORK}/records/cifar10_fast.json"]


def _resnet20(quick: bool, downloads: Sequence[str]) -> list[str]:
    """Gives the recipe and its flags for a run of two epochs."""
    small = ["--epochs", "0.01", "--steps-per-call", "1", "--data.eval-split", "test[:500]"]
    words = ["cifar10_resnet20", *(small if quick else ["--epochs", "2", "--eval-every", "1"])]
    where = ["--data.downloads", *downloads] if downloads else []
    return [*words, "--run", f"{WORK}/runs/resnet20", "--overwrite", *where]
