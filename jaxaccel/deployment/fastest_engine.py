"""The fastest engine for each size of batch, by the times that a bundle brings along. ``--engine auto``."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.deployment.batches import run_in_batches
from jaxaccel.deployment.signature import Arrays, Engine, Signature

XLA = "xla"


@dataclasses.dataclass(frozen=True)
class EngineTime:
    """What one engine took for one batch."""

    engine: str
    batch: int
    length: int
    """That examples are filled up to; 0 where they have one shape."""
    cores: int
    """That the process had."""
    milliseconds: float
    """Median of the rounds."""
    gain: float
    """How many times as fast as XLA: median over pairs of turns."""
    noise: float
    """How far `gain` may be off: a gain that differs less from 1 is none."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EngineTime":
        """The time that ``dataclasses.asdict`` wrote."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


class FastestEngine:
    """Computes each batch by the engine that was the fastest for its size.

    Args:
      engines: by the sizes of batches that they compute.
    """

    def __init__(self, engines: Mapping[int, Engine]) -> None:
        self._engines = dict(sorted(engines.items()))
        self.name = " and ".join(dict.fromkeys(engine.name for engine in self._engines.values()))

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return next(iter(self._engines.values())).signature

    @property
    def batches(self) -> Sequence[int]:
        """Numbers of examples that it computes at a time, ascending."""
        return list(self._engines)

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The outputs for any number of examples.

        Raises:
          UserError: `arrays` are not the inputs.
        """
        count = self.signature.check_inputs(arrays)
        return run_in_batches(self._run, arrays, count, self.batches)

    def _run(self, arrays: Arrays) -> Mapping[str, np.ndarray]:
        return self._engines[len(next(iter(arrays.values())))].run(arrays)


def choose_engines(times: Sequence[EngineTime], sizes: Sequence[int], cores: int) -> dict[int, str]:
    """Chooses the engine of each size of batch: XLA, unless another one was faster beyond noise.

    A size that was not timed takes what is best for the nearest one, by ratio. Times on the number of cores that is
    nearest to `cores` count. Where examples vary in length, gains over all lengths are averaged.

    Args:
      times: of a bundle.
      sizes: of batches.
      cores: that the process has.
    """
    if not times:
        return dict.fromkeys(sizes, XLA)
    nearest = min({row.cores for row in times}, key=lambda n: abs(np.log(n / cores)))
    rows = [row for row in times if row.cores == nearest]
    timed = {row.batch for row in rows}
    return {
        size: _choose([row for row in rows if row.batch == min(timed, key=lambda n: abs(np.log(n / size)))])
        for size in sizes
    }


def _choose(rows: Sequence[EngineTime]) -> str:
    """The engine with the largest gain, of those that are faster than XLA at every length or within noise of it."""
    gains: dict[str, float] = {}
    for name in dict.fromkeys(row.engine for row in rows):
        own = [row for row in rows if row.engine == name]
        sure = float(np.exp(np.mean([np.log(max(row.gain - row.noise, 1e-9)) for row in own])))
        gains[name] = float(np.exp(np.mean([np.log(row.gain) for row in own]))) if sure > 1 else 0.0
    best = max(gains, key=lambda name: gains[name])
    return best if gains[best] > 1 else XLA
