"""Which of several forms is the fastest on a device: timed once, and kept on disk."""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxaccel.core import files, runtime
from jaxaccel.core.timing import run_repeatedly, time_in_turns

ROUNDS = 5
"""How often each form is timed, in turns."""
MIN_GAIN = 1.1
"""How many times as fast as XLA's own a form must be to be taken: timings have noise."""


def find_fastest(
    what: str, contenders: Mapping[str, Callable[..., Any]], shapes: Sequence[Any], device: Any
) -> str:
    """Finds the contender that runs fastest on a device; the first one unless another is clearly faster.

    Args:
      what: what the contenders compute, in full: verdicts are kept under it, by device and versions.
      contenders: functions of arrays that compute the same.
      shapes: of the arrays, with their dtypes; they are filled at random.
      device: one that is attached.
    """
    file = get_file(device)
    verdicts = _load(file)
    if what not in verdicts:
        verdicts[what] = _time(contenders, shapes, device)
        _save(file, verdicts)
    return verdicts[what]


def get_file(device: Any) -> Path | None:
    """Returns the file of verdicts for a device and these versions; None where ``JAXACCEL_CACHE=0`` forbids one."""
    wanted = os.environ.get("JAXACCEL_CACHE", "")
    if wanted == "0":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxaccel"
    found = runtime.versions()
    where = [device.device_kind, platform.machine(), runtime.find_processor(), str(os.cpu_count())]
    digest = hashlib.sha256(json.dumps([*where, found["jax"], found["jaxlib"]]).encode()).hexdigest()
    return (Path(wanted) if wanted else base) / f"lowerings-{digest[:16]}.json"


@functools.cache
def _load(file: Path | None) -> dict[str, str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):  # none yet, or damaged: they are timed again
        return {}
    return found if isinstance(found, dict) else {}


def _save(file: Path | None, verdicts: Mapping[str, str]) -> None:
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(verdicts, indent=0, sort_keys=True))
    except OSError:  # a verdict that is not kept is timed again
        return


def _time(contenders: Mapping[str, Callable[..., Any]], shapes: Sequence[Any], device: Any) -> str:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s.shape, np.float32).astype(s.dtype) for s in shapes]
    there = jax.sharding.SingleDeviceSharding(device)
    placed = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=there) for s in shapes]
    # Compiled before they are called: a function that is being traced around this one does not see them.
    calls = {name: jax.jit(f).lower(*placed).compile() for name, f in contenders.items()}
    with jax.ensure_compile_time_eval():
        held = jax.device_put(arrays, there)
        turns = {name: run_repeatedly(functools.partial(call, *held)) for name, call in calls.items()}
        times = time_in_turns(turns, rounds=ROUNDS)
    own, best = next(iter(contenders)), times.fastest()
    return best if times.gain(best, over=own).ratio > MIN_GAIN else own
