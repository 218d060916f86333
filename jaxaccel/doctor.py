"""What this machine gives a training run, and what is wrong with it: ``python -m jaxaccel.doctor [--json]``.

`gather` looks at the machine, `findings` judges what it saw (a pure function), and the exit code is 1 if
something is seriously wrong.
"""

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxaccel import cli, runtime

GB = 1e9
JAX_RANGE = (0, 10, 2), (0, 12, 0)
"""The versions of JAX that pyproject.toml allows: from the first one, below the second."""
WATCHED = re.compile(r"(JAX|XLA|JAXACCEL|LIBTPU|CUDA_VISIBLE|TPU|NVIDIA_TF32|OMP_NUM|TFDS)_?")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What `gather` saw; sizes are in bytes, rates in operations or bytes a second."""

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


def gather(measure: bool = True) -> Facts:
    """Looks at the machine; with `measure`, it also computes for about 5 seconds."""
    environment = {name: value for name, value in sorted(os.environ.items()) if WATCHED.match(name)}
    # A run that is under way on the same GPU must not find its memory taken.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    importlib.import_module("jaxaccel.train")
    imported = tuple(name for name in ("tensorflow", "torch") if name in sys.modules)
    allocator, cache = runtime.keep_freed_memory(), runtime.compile_cache()
    error, kinds, memory = "", [], 0
    try:
        kinds = [device.device_kind for device in jax.devices()]
        memory = runtime.device_memory()
    except RuntimeError as raised:
        error = str(raised).splitlines()[0]
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return Facts(
        backend="" if error else jax.default_backend(), error=error,
        devices={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}, memory=memory,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=os.getloadavg()[0], gpus=_gpus(), tpus=len(list(Path("/dev").glob("accel[0-9]*"))),
        versions=runtime.versions(), allocator=allocator, cache=cache, cache_error=_unwritable(cache),
        cache_size=_size(Path(cache)), cache_free=_free(Path(cache)), data_dir=str(data_dir),
        data_free=_free(data_dir), environment=environment, imported=imported,
        rates=rates() if measure and not error else {},
    )  # fmt: skip


def rates(seconds: float = 1.0) -> dict[str, float]:
    """FLOP/s of square matrix products and bytes/s of a copy on the first device, about `seconds` each.

    float32 is what JAX makes of it by default (TF32 or bfloat16 passes on accelerators); bfloat16 asks for
    a float32 result, without which XLA's CPU backend does not reach its fast kernels.
    """
    side, length = (1024, 2**25) if jax.default_backend() == "cpu" else (8192, 2**28)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    found = {
        dtype: 2 * side**3 / _seconds_a_call(product, jnp.ones((side, side), dtype), seconds)
        for dtype in ("float32", "bfloat16")
    }
    # An addition, which no compiler may leave out.
    taken = _seconds_a_call(jax.jit(lambda x: x + 1), jnp.zeros(length, jnp.float32), seconds)
    return found | {"copy": 2 * 4 * length / taken}


def _seconds_a_call(function: Callable[[jax.Array], jax.Array], x: jax.Array, seconds: float) -> float:
    """The median over several turns of four calls each."""
    jax.block_until_ready(function(x))
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready([function(x) for _ in range(4)])
        taken.append((time.perf_counter() - start) / 4)
    return statistics.median(taken)


def _gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs, by nvidia-smi or, without it, by their device files."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.split("\n")  # fmt: skip
        return tuple(name.strip() for name in listed if name.strip())
    except (OSError, subprocess.SubprocessError):
        return tuple(str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*")))


def _unwritable(cache: str) -> str:
    if cache.startswith("none ("):
        return cache.removeprefix("none (").removesuffix(")")
    try:
        with tempfile.TemporaryFile(dir=cache):
            return ""
    except OSError as error:
        return str(error)


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*") if file.is_file())


def _free(directory: Path) -> int:
    """Bytes free on the disk that holds `directory`, or would hold it."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def summary(facts: Facts) -> dict[str, str]:
    """What to show of `facts`: a name and a text for each line."""
    count = ", ".join(f"{n} x {kind}" for kind, n in facts.devices.items()) or "none"
    shown = {
        "devices": f"{count}, {facts.memory / GB:.1f} GB each" if facts.backend != "cpu" else
                   f"{count}, {facts.cores} cores, {facts.memory / GB:.1f} GB",
        "GPUs in the machine": ", ".join(facts.gpus) or "none",
        "versions": "  ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "not imported": ", ".join(n for n in ("tensorflow", "torch") if n not in facts.imported) or "-",
        "host allocator": facts.allocator,
        "compile cache": f"{facts.cache}: {facts.cache_size / GB:.3f} GB, {facts.cache_free / GB:.1f} GB free",
        "data sets": f"{facts.data_dir}: {facts.data_free / GB:.1f} GB free",
        "environment": "  ".join(f"{name}={value}" for name, value in facts.environment.items()) or "-",
    }  # fmt: skip
    for name, rate in facts.rates.items():
        label = "device copy" if name == "copy" else f"matmul {name}"
        shown[label] = f"{rate / 1e9:,.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
    return shown


def show(facts: Facts, found: Sequence[Finding]) -> None:
    """A table on a terminal, plain lines elsewhere; then the findings, one a line."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        table = Table(title="jaxaccel doctor", show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for row in summary(facts).items():
            table.add_row(*row)
        console.print(table, soft_wrap=False)
    else:
        for name, text in summary(facts).items():
            console.print(f"{name}: {text}", markup=False)
    for finding in found:
        console.print(str(finding), markup=False, style="bold red" if finding.serious else "yellow")
    if not found:
        console.print("all is well", style="green")


def main(argv: Sequence[str]) -> int:
    """The command line; returns 1 if something is seriously wrong, else 0."""
    parser = argparse.ArgumentParser("python -m jaxaccel.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print facts and findings as JSON")
    parser.add_argument("--no-rates", action="store_true", help="do not measure (about 5 seconds)")
    options = parser.parse_args(argv)
    facts = gather(measure=not options.no_rates)
    found = findings(facts)
    if options.json:
        whole: dict[str, Any] = dataclasses.asdict(facts)
        print(json.dumps(whole | {"findings": [dataclasses.asdict(finding) for finding in found]}, indent=1))
    else:
        show(facts, found)
    return int(any(finding.serious for finding in found))


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
