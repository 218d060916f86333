"""What is wrong with a machine and what to do about it: pure functions of facts."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from jaxaccel.core import runtime

GB = 1e9
JAX_RANGE = (0, 10, 2), (0, 12, 0)
"""The versions of JAX that pyproject.toml allows: from the first one, below the second."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What `gather_facts` saw; sizes are in bytes, rates in operations or bytes a second."""

    backend: str
    """cpu, gpu, tpu, or empty where JAX found no device."""
    error: str
    """What JAX said when it found no device."""
    devices: Mapping[str, int]
    """How many there are of each kind."""
    memory: int
    """Of one device; on a CPU, of the machine."""
    cores: int
    load: float
    """Processes that wanted to run in the last minute, on the average."""
    gpus: tuple[str, ...]
    """Those in the machine, whether JAX uses them or not."""
    tpus: int
    versions: Mapping[str, str]
    allocator: str
    cache: str
    """Directory of the compile cache, or why there is none."""
    cache_error: str
    """Why a file cannot be written there, or empty."""
    cache_size: int
    cache_free: int
    """Bytes free on its disk."""
    data_dir: str
    data_free: int
    environment: Mapping[str, str]
    """The variables that JAX, XLA and jaxaccel read."""
    imported: tuple[str, ...] = ()
    """TensorFlow and PyTorch, if importing jaxaccel brought them in."""
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """``float32``, ``bfloat16`` (FLOP/s of a matrix product), ``copy`` (bytes/s read and written)."""
    kernels: str = ""
    """What oneDNN's kernels compute in and by which instructions, or why there are none; empty on other platforms."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do."""

    serious: bool
    """Training fails, or misses the accelerator; otherwise it merely could be better."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{'WRONG' if self.serious else 'note'}: {self.problem} -> {self.remedy}"


def findings(facts: Facts) -> list[Finding]:
    """All that is wrong with what `facts` says, the serious things first."""
    checks = (_devices, _versions, _processes, _memory, _cache, _disks, _settings, _speed)
    return sorted((found for check in checks for found in check(facts)), key=lambda f: not f.serious)


def _devices(facts: Facts) -> Iterator[Finding]:
    if facts.error:
        yield Finding(
            True, f"JAX finds no device: {facts.error}", "unset JAX_PLATFORMS, or install what it names"
        )
    if facts.backend != "cpu":
        return
    kept_off = facts.environment.get("JAX_PLATFORMS", "") == "cpu"
    for what, extra in (("GPU", "cuda"), ("TPU", "tpu")):
        there = facts.gpus if what == "GPU" else ("TPU",) * facts.tpus
        if not there:
            continue
        problem = f"{len(there)} {what} ({there[0]}) in this machine, but JAX runs on the CPU"
        if kept_off:
            yield Finding(False, f"{problem} as JAX_PLATFORMS=cpu says", "unset JAX_PLATFORMS to use it")
        elif what == "GPU" and facts.environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield Finding(True, f"{problem}: CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES")
        else:
            yield Finding(True, problem, f"pip install 'jaxaccel[{extra}]'")


def _versions(facts: Facts) -> Iterator[Finding]:
    low, high = JAX_RANGE
    wanted = "pip install 'jax>={}.{}.{},<{}.{}'".format(*low, *high[:2])
    version = facts.versions.get("jax", "")
    if not low <= _numbers(version) < high:
        yield Finding(True, f"JAX {version} is not a version that jaxaccel is tested with", wanted)
    jaxlib = facts.versions.get("jaxlib", "")
    if _numbers(jaxlib)[:2] != _numbers(version)[:2]:
        yield Finding(True, f"jaxlib {jaxlib} does not belong to JAX {version}", wanted)
    missing = [name for name in runtime.STACK if facts.versions.get(name) == "source"]
    if missing:
        yield Finding(True, f"not installed: {', '.join(missing)}", "pip install jaxaccel once more")
    for name in facts.imported:
        yield Finding(
            True, f"importing jaxaccel brought in {name}: slow to start, and it takes GPU memory",
            f"look in sitecustomize and JAX plugins for what imports {name}",
        )  # fmt: skip


def _processes(facts: Facts) -> Iterator[Finding]:
    count = facts.environment.get("JAX_NUM_PROCESSES")
    if count and not facts.environment.get("JAX_COORDINATOR_ADDRESS"):
        yield Finding(True, "JAX_NUM_PROCESSES is set without JAX_COORDINATOR_ADDRESS", "set both or neither")
    if count and not (count.isdecimal() and int(count)):
        yield Finding(True, f"JAX_NUM_PROCESSES={count} is not a number of processes", "set it to 1 or more")
    elif count and facts.backend == "gpu" and int(count) > len(facts.gpus) > 0:
        yield Finding(
            False, f"{count} processes and {len(facts.gpus)} GPUs here: on one host, some would have none",
            "start one process a GPU at most, each with its own CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", facts.environment.get("XLA_FLAGS", ""))
    if forced and facts.backend == "cpu" and int(forced[1]) > facts.cores:
        yield Finding(
            False, f"XLA_FLAGS makes {forced[1]} devices of {facts.cores} cores: good for tests, slow to train",
            "unset XLA_FLAGS to train",
        )  # fmt: skip


def _memory(facts: Facts) -> Iterator[Finding]:
    setting = facts.environment.get("XLA_PYTHON_CLIENT_PREALLOCATE")
    if setting is not None and setting.lower() not in ("true", "false", "0", "1"):
        yield Finding(False, f"XLA_PYTHON_CLIENT_PREALLOCATE={setting} is neither true nor false", "unset it")
    elif setting and setting.lower() in ("false", "0") and facts.backend == "gpu":
        yield Finding(False, "without XLA_PYTHON_CLIENT_PREALLOCATE memory fragments", "unset it to train")
    for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
        share = facts.environment.get(name)
        if share and not (re.fullmatch(r"\d*\.?\d+", share) and 0 < float(share) <= 1):
            yield Finding(True, f"{name}={share} is not within (0, 1]", "set it to 0.9, or unset it")
    if facts.environment.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        yield Finding(False, "XLA_PYTHON_CLIENT_ALLOCATOR=platform allocates slowly", "unset it to train")
    if facts.backend == "cpu" and "JAXACCEL_ALLOCATOR=0" in facts.allocator:
        yield Finding(False, "each step gets its memory from the system anew", "unset JAXACCEL_ALLOCATOR")
    elif "refused" in facts.allocator:
        yield Finding(False, f"{facts.allocator}: steps may be slow", "do without LD_PRELOAD")


def _cache(facts: Facts) -> Iterator[Finding]:
    if "JAXACCEL_CACHE=0" in facts.cache:
        yield Finding(False, "no compile cache: every start compiles anew", "unset JAXACCEL_CACHE")
    elif facts.cache_error:
        problem = f"the compile cache cannot be written: {facts.cache_error}"
        yield Finding(True, problem, "JAXACCEL_CACHE=DIR names another place")


def _disks(facts: Facts) -> Iterator[Finding]:
    if facts.cache_free < 0.5 * GB:
        yield Finding(
            facts.cache_free < 0.05 * GB, f"{facts.cache_free / GB:.2f} GB left for the compile cache {facts.cache}",
            "free some, or JAXACCEL_CACHE=DIR on another disk",
        )  # fmt: skip
    if facts.data_free < 5 * GB:
        yield Finding(
            facts.data_free < 0.1 * GB, f"{facts.data_free / GB:.2f} GB left for data sets in {facts.data_dir}",
            "free some, or TFDS_DATA_DIR=DIR on another disk",
        )  # fmt: skip


def _settings(facts: Facts) -> Iterator[Finding]:
    for name, serious, effect in (
        ("JAX_DISABLE_JIT", True, "nothing is compiled"),
        ("JAX_DEBUG_NANS", False, "every result is checked on the host"),
        ("JAX_ENABLE_X64", False, "numbers take twice the memory and more than twice the time"),
    ):
        if facts.environment.get(name, "0").lower() not in ("", "0", "false"):
            yield Finding(serious, f"{name} is set: {effect}", f"unset {name} to train")


def _speed(facts: Facts) -> Iterator[Finding]:
    if facts.load > 1.5 * facts.cores:
        yield Finding(
            False, f"{facts.load:.1f} processes want {facts.cores} cores: the rates above are too low",
            "see what else runs (top)",
        )  # fmt: skip
    if 0 < facts.rates.get("bfloat16", 0) < facts.rates.get("float32", 0):
        yield Finding(False, "bfloat16 is slower than float32 here", "train in float32 on this device")


def _numbers(version: str) -> tuple[int, ...]:
    """0.10.2.dev1 -> (0, 10, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
