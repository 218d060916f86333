"""Engines timed beside each other on this machine, each alone and in turns, on one core and on all.

An engine may be four times as fast as XLA on a processor, or six times slower: that depends on the model. So none is
chosen that was not timed. A process of its own times each number of cores, because engines make their threads once.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.deployment.bundle import Bundle, open_bundle
from jaxaccel.deployment.fastest_engine import XLA, EngineTime
from jaxaccel.deployment.onnx_engines import count_cores
from jaxaccel.deployment.signature import Arrays, Engine
from jaxaccel.errors import UserError

ROUNDS = 9
TURN_SECONDS = 0.02
"""Seconds that a turn takes about; quick calls are repeated."""
BUDGET = 30.0
"""Seconds after which no further round of a batch size begins."""


def time_engines(place: Path, cores: Sequence[int] = ()) -> list[EngineTime]:
    """Times all engines that a bundle has and that are installed, for each batch size that was exported.

    Args:
      place: of the bundle.
      cores: numbers of cores, by default one and all of this process's.

    Raises:
      UserError: a process that times fails.
    """
    found = []
    for count in cores or sorted({1, count_cores()}):
        command = [sys.executable, "-m", __name__, str(place), str(count)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["no reason"])[-1]
            raise UserError(f"the engines of {place} cannot be timed on {count} cores: {reason}")
        found += [EngineTime.from_json(values) for values in json.loads(run.stdout.splitlines()[-1])]
    return found


def time_here(bundle: Bundle) -> list[EngineTime]:
    """Times the engines in this process."""
    engines = open_engines(bundle)
    return [
        row
        for size, length in _list_cases(bundle, engines[XLA])
        for row in _time_case(engines, size, length, _make_inputs(bundle, size, length))
    ]


def open_engines(bundle: Bundle) -> dict[str, Engine]:
    """Opens all engines that the bundle has something for and that are installed, XLA first."""
    found = {XLA: bundle.engine(XLA)}
    for name in ("onnxruntime", "openvino") if "onnx" in bundle.manifest.models else ():
        try:
            found[name] = bundle.engine(name)
        except UserError:  # it is not installed, or has no such operation
            continue
    return found


def _list_cases(bundle: Bundle, xla: Engine) -> list[tuple[int, int]]:
    lengths = sorted({entry.length for entry in bundle.manifest.programs})
    return [(size, length) for length in lengths for size in xla.batches]


def _time_case(engines: Mapping[str, Engine], size: int, length: int, inputs: Arrays) -> list[EngineTime]:
    turns = {name: run_repeatedly(functools.partial(engine.run, inputs)) for name, engine in engines.items()}
    times = time_in_turns(turns, rounds=ROUNDS, seconds=TURN_SECONDS, budget=BUDGET)
    gains = {name: times.gain(name, over=XLA) for name in engines}
    return [
        EngineTime(
            name, size, length, count_cores(), 1000 * times.median(name), gains[name].ratio, gains[name].noise
        )
        for name in engines
    ]


def _make_inputs(bundle: Bundle, size: int, length: int) -> dict[str, np.ndarray]:
    """Some inputs: noise, and numbers from 1 to 3 where they are whole, as all tokens and lengths may be."""
    rng = np.random.default_rng(0)
    entry = next(entry for entry in bundle.manifest.programs if entry.length == length)
    arrays = {}
    for spec, shape in zip(bundle.signature.inputs, entry.shapes, strict=True):
        whole = np.issubdtype(np.dtype(spec.dtype), np.integer) if spec.dtype != "bfloat16" else False
        draw = rng.integers(1, 4, (size, *shape)) if whole else rng.standard_normal((size, *shape))
        arrays[spec.name] = draw.astype(spec.dtype)
    return arrays


def main(place: str, cores: str) -> None:
    """Times on so many cores, and prints the times as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    print(json.dumps([dataclasses.asdict(row) for row in time_here(open_bundle(place))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
