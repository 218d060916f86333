"""Where and when a benchmark ran, and the file that keeps its numbers."""

import datetime
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxaccel.core import runtime

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Device, processor, versions, date, and how busy the machine was when the benchmark began."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "allocator": runtime.keep_freed_memory(),
        "commit": runtime.git_commit(Path(__file__).parent),
        "versions": runtime.versions(),
    }


def cpu_model() -> str:
    """As /proc/cpuinfo names it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def path(benchmark: str, where: dict[str, Any]) -> Path:
    """results/BENCHMARK-DEVICE.json, the device as a few plain letters."""
    device = re.sub(r"[^a-z0-9]+", "-", where["device_kind"].lower()).strip("-")
    return RESULTS / f"{benchmark}-{device}.json"


def cells(file: Path, where: dict[str, Any]) -> list[dict[str, Any]]:
    """What `file` holds already, if it was measured with the same versions on the same processor."""
    if not file.exists():
        return []
    before = json.loads(file.read_text(encoding="utf-8"))
    same = all(before["machine"].get(name) == where[name] for name in ("versions", "cpu", "cores"))
    return before["cells"] if same else []


def show(table: Table, file: Path) -> None:
    """The table, wide enough where it goes to a file, and where its numbers stand."""
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    print(f"written to {file}")


def write(file: Path, record: dict[str, Any]) -> None:
    """`record` as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
