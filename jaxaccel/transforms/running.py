"""Activation ranges that follow training, as an ``init``/``update`` pair."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxaccel.options import Options, ShareBelowOne
from jaxaccel.transforms.calibrate import Calibration


@dataclasses.dataclass(frozen=True)
class RunningRanges(Options):
    """Moving averages of the largest magnitudes that ``fake_int8(f, observe=True)`` sees.

    The state is a `Calibration`: give it to `fake_int8` in the next step, and to `int8` in the end.
    """

    decay: ShareBelowOne = 0.99
    """Share of the range so far in the next one."""

    def init(self, observed: Mapping[str, jax.Array]) -> Calibration:
        """The state after the first batch."""
        return Calibration(dict(observed))

    def update(self, state: Calibration, observed: Mapping[str, jax.Array]) -> Calibration:
        """The state after one more batch; values that are not finite are left out."""
        averaged = {}
        for name, old in state.ranges.items():
            new = observed[name]
            averaged[name] = jnp.where(jnp.isfinite(new), self.decay * old + (1 - self.decay) * new, old)
        return Calibration(averaged)
