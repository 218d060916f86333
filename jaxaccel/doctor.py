"""What this machine gives a training run, and what is wrong with it: ``python -m jaxaccel.doctor [--json]``.

`gather_facts` looks at the machine, `findings` judges what it saw (a pure function), and the exit code is 1 if
something is seriously wrong. With ``--device h100`` it looks at a device that is not attached instead.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxaccel import cli
from jaxaccel.advisor.device import DeviceFacts, Landing, device_findings, inspect_device
from jaxaccel.advisor.findings import GB, Facts, Finding, findings
from jaxaccel.core import kernels, runtime
from jaxaccel.core.timing import ROUNDS, time_call
from jaxaccel.core.unattached import NAMES

CALLS_UNDER_WAY = 4
"""Calls that are made before they are waited for, so that the device is never idle."""
WATCHED = re.compile(r"(JAX|XLA|JAXACCEL|LIBTPU|CUDA_VISIBLE|TPU|NVIDIA_TF32|OMP_NUM|TFDS)_?")
DEVICE_HELP = """--device NAME measures nothing and needs no such device, only its compiler: pip install
'jaxaccel[cuda]' for GPUs, 'jaxaccel[tpu]' for TPUs. It prints the peaks of the device, then what its compiler makes of
a matrix product and of a convolution in float32, bfloat16, float16, int8 and float8: the types that are multiplied, by
what (cuBLAS, cuDNN, Triton), and the least time at the peaks of arithmetic and memory."""


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
        kernels=kernels.describe() if not error and jax.default_backend() == "cpu" else "",
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
    if facts.kernels:
        shown["oneDNN's kernels"] = facts.kernels
    for name, rate in facts.rates.items():
        label = "device copy" if name == "copy" else f"matmul {name}"
        shown[label] = f"{rate / 1e9:,.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
    return shown


def summarize_device(facts: DeviceFacts) -> dict[str, str]:
    """What to show of a device that is not attached: a name and a text for each line."""
    return {
        "device": facts.name + (f", compute capability {facts.capability}" if facts.capability else ""),
        "memory": f"{facts.memory / GB:.1f} GB, {facts.bandwidth / GB:,.0f} GB/s",
        "peaks": "  ".join(f"{name} {rate / 1e12:g} TFLOP/s" for name, rate in facts.peaks.items()),
        "versions": "  ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "compiler": "not installed" if facts.error else "installed; what follows is compiled, not measured",
    }


def show_findings(
    summary: Mapping[str, str], found: Sequence[Finding], landings: Sequence[Landing] = ()
) -> None:
    """Tables on a terminal, plain lines elsewhere; then the findings, one a line."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        table = Table(title="jaxaccel doctor", show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for row in summary.items():
            table.add_row(*row)
        console.print(table, soft_wrap=False)
        if landings:
            console.print(_tabulate_landings(landings), soft_wrap=False)
    else:
        for name, text in summary.items():
            console.print(f"{name}: {text}", markup=False)
        for landing in landings:
            program, precision, *rest = _landing_cells(landing)
            console.print(f"{program}, {precision}: {', '.join(filter(None, rest))}", markup=False)
    for finding in found:
        console.print(str(finding), markup=False, style="bold red" if finding.serious else "yellow")
    if not found:
        console.print("all is well", style="green")


def _tabulate_landings(landings: Sequence[Landing]) -> Table:
    table = Table(title="What its compiler makes of a product", title_justify="left")
    for header in ("program", "precision", "became", "least time"):
        table.add_column(header, overflow="fold")
    for landing in landings:
        table.add_row(*map(escape, _landing_cells(landing)))
    return table


def _landing_cells(landing: Landing) -> tuple[str, str, str, str]:
    became = f"{landing.became} ({landing.reason})" if landing.reason else landing.became
    time = landing.milliseconds
    least = "" if time is None else f"at least {time:.3f} ms ({landing.bound})"
    return landing.program, landing.precision, became, least


def diagnose_device(device: str) -> tuple[DeviceFacts, list[Finding]]:
    """What to know of a device that is not attached; the devices of this machine are left alone.

    Raises:
      UserError: there is no such device.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu reads it, and asks no network then
    jax.config.update("jax_platforms", "cpu")
    facts = inspect_device(device)
    return facts, device_findings(facts)


def main(argv: Sequence[str]) -> int:
    """The command line; returns 1 if something is seriously wrong, else 0."""
    parser = argparse.ArgumentParser(
        "python -m jaxaccel.doctor", description=(__doc__ or "").split("\n")[0], epilog=DEVICE_HELP
    )
    parser.add_argument("--json", action="store_true", help="print facts and findings as JSON")
    parser.add_argument("--no-rates", action="store_true", help="do not measure (about 5 seconds)")
    parser.add_argument(
        "--device", metavar="NAME", help="look at a device that is not attached: " + ", ".join(NAMES)
    )
    options = parser.parse_args(argv)
    landings: Sequence[Landing] = ()
    if options.device is not None:
        facts, found = diagnose_device(options.device)
        summary, landings = summarize_device(facts), facts.landings
    else:
        facts = gather_facts(measure=not options.no_rates)
        found, summary = findings(facts), summarize_facts(facts)
    if options.json:
        whole: dict[str, Any] = dataclasses.asdict(facts)
        print(json.dumps(whole | {"findings": [dataclasses.asdict(finding) for finding in found]}, indent=1))
    else:
        show_findings(summary, found, landings)
    return int(any(finding.serious for finding in found))


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
