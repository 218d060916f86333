"""What this machine gives a training run, and what is wrong with it: ``python -m jaxaccel.doctor [--json]``.

`gather_facts` looks at the machine, `findings` judges what it saw (a pure function), and the exit code is 1 if
something is seriously wrong.
"""

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxaccel import cli
from jaxaccel.advisor.findings import GB, Facts, Finding, findings
from jaxaccel.core import runtime
from jaxaccel.core.timing import ROUNDS, time_call

CALLS_UNDER_WAY = 4
"""Calls that are made before they are waited for, so that the device is never idle."""
WATCHED = re.compile(r"(JAX|XLA|JAXACCEL|LIBTPU|CUDA_VISIBLE|TPU|NVIDIA_TF32|OMP_NUM|TFDS)_?")


def gather_facts(measure: bool = True) -> Facts:
    """Looks at the machine; with `measure`, it also computes for about 5 seconds."""
    environment = {name: value for name, value in sorted(os.environ.items()) if WATCHED.match(name)}
    # A run that is under way on the same GPU must not find its memory taken.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    importlib.import_module("jaxaccel.training.loop")
    imported = tuple(name for name in ("tensorflow", "torch") if name in sys.modules)
    allocator, cache = runtime.keep_freed_memory(), runtime.compile_cache()
    error, kinds, memory = "", [], 0
    try:
        kinds = [device.device_kind for device in jax.devices()]
        memory = runtime.device_memory(jax.local_devices()[0])
    except RuntimeError as raised:
        error = str(raised).splitlines()[0]
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return Facts(
        backend="" if error else jax.default_backend(), error=error,
        devices={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}, memory=memory,
        cores=runtime.cores(),
        load=os.getloadavg()[0], gpus=_gpus(), tpus=len(list(Path("/dev").glob("accel[0-9]*"))),
        versions=runtime.versions(), allocator=allocator, cache=cache, cache_error=_unwritable(cache),
        cache_size=_size(Path(cache)), cache_free=_free(Path(cache)), data_dir=str(data_dir),
        data_free=_free(data_dir), environment=environment, imported=imported,
        rates=measure_rates() if measure and not error else {},
    )  # fmt: skip


def measure_rates(seconds: float = 1.0) -> dict[str, float]:
    """FLOP/s of square matrix products and bytes/s of a copy on the first device, about `seconds` each.

    float32 is what JAX makes of it by default (TF32 or bfloat16 passes on accelerators); bfloat16 asks for
    a float32 result, without which XLA's CPU backend does not reach its fast kernels.
    """
    side, length = (1024, 2**25) if jax.default_backend() == "cpu" else (8192, 2**28)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    found = {
        dtype: 2 * side**3 / _measure(product, jnp.ones((side, side), dtype), seconds)
        for dtype in ("float32", "bfloat16")
    }
    # An addition, which no compiler may leave out.
    taken = _measure(jax.jit(lambda x: x + 1), jnp.zeros(length, jnp.float32), seconds)
    return found | {"copy": 2 * 4 * length / taken}


def _measure(function: Callable[[jax.Array], jax.Array], x: jax.Array, seconds: float) -> float:
    """Measures a call for about so many `seconds`: the median of turns of calls that are under way together."""

    def call() -> list[jax.Array]:
        return [function(x) for _ in range(CALLS_UNDER_WAY)]

    return time_call(call, seconds=seconds / ROUNDS, budget=seconds) / CALLS_UNDER_WAY


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


def summarize_facts(facts: Facts) -> dict[str, str]:
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


def show_findings(facts: Facts, found: Sequence[Finding]) -> None:
    """A table on a terminal, plain lines elsewhere; then the findings, one a line."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        table = Table(title="jaxaccel doctor", show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for row in summarize_facts(facts).items():
            table.add_row(*row)
        console.print(table, soft_wrap=False)
    else:
        for name, text in summarize_facts(facts).items():
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
    facts = gather_facts(measure=not options.no_rates)
    found = findings(facts)
    if options.json:
        whole: dict[str, Any] = dataclasses.asdict(facts)
        print(json.dumps(whole | {"findings": [dataclasses.asdict(finding) for finding in found]}, indent=1))
    else:
        show_findings(facts, found)
    return int(any(finding.serious for finding in found))


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
