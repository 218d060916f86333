"""Records: where and when a benchmark ran, and the file that keeps its figures."""

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxaccel.core import runtime

Cell = dict[str, Any]
"""What is kept of one comparison."""
PAIRED = "median of the rounds' ratios"
"""How ratios are made of times: the value of a record's `ratios`."""


def describe_machine() -> dict[str, Any]:
    """Describes the device, processor, versions and date, and how busy the machine was when the benchmark began."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "cpu": describe_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "allocator": runtime.keep_freed_memory(),
        "commit": runtime.git_commit(Path(__file__).parent),
        "versions": runtime.versions(),
    }


def describe_processor() -> str:
    """Names the processor as /proc/cpuinfo does."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def name_file(benchmark: str, part: str, machine: Mapping[str, Any]) -> str:
    """Names the file of a record: BENCHMARK[-PART]-DEVICE.json, the device as a few plain letters."""
    device = re.sub(r"[^a-z0-9]+", "-", machine["device_kind"].lower()).strip("-")
    return "-".join(word for word in (benchmark, part, device) if word) + ".json"


def read_record(file: Path) -> dict[str, Any]:
    """Reads a record."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def merge_cells(
    file: Path, machine: Mapping[str, Any], cells: Sequence[Cell], key: Sequence[str], quick: bool
) -> list[Cell]:
    """Adds cells to those that a file has, if they were measured with the same versions on the same processor.

    Quick ones and others never stand in one record.

    A cell takes the place of the one with the same values of `key`.
    """
    new = {tuple(str(cell.get(name)) for name in key) for cell in cells}
    old = read_record(file) if file.exists() else {"machine": {}, "cells": []}
    same = is_same_machine(old["machine"], machine) and old.get("quick") == quick
    kept = old["cells"] if same else []
    return [cell for cell in kept if tuple(str(cell.get(name)) for name in key) not in new] + list(cells)


def is_same_machine(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tells whether figures of both may stand in one record. Versions of peers need not be in both."""
    shared = old.get("versions", {}).keys() & new["versions"].keys()
    same = all(old["versions"][name] == new["versions"][name] for name in shared)
    return (
        bool(shared) and same and all(old.get(name) == new[name] for name in ("cpu", "cores", "device_kind"))
    )


def summarize(values: Iterable[float], unit: str = "") -> dict[str, float]:
    """Summarizes values by their median and range."""
    values = list(values)
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name + unit: value for name, value in found.items()}


def summarize_times(seconds: Iterable[float]) -> dict[str, float]:
    """Summarizes seconds as milliseconds: their median and range."""
    return summarize((1e3 * value for value in seconds), "_ms")
