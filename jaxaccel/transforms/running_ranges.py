"""Activation ranges that follow training, as an ``init``/``update`` pair."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxaccel.core.options import Options, ShareBelowOne
from jaxaccel.transforms.calibrate import Calibration


@dataclasses.dataclass(frozen=True)
class RunningRanges(Options):
    """Moving averages of the largest magnitudes that ``fake_int8(f, observe=True)`` sees.

    The state is a `Calibration`: give it to `fake_int8` in the next step, and to `int8` in the end. A range of 0 is not
    known yet: the next magnitude that is finite takes its place, and ``fake_int8(f, observe=True)`` uses the range of
    the values at hand until then.
    """

    decay: ShareBelowOne = 0.99
    """Share of the range so far in the next one."""

    def init(self, observed: Mapping[str, jax.Array]) -> Calibration:
        """The state after the first batch; ranges of values that are not finite are 0."""
        return Calibration({name: jnp.where(jnp.isfinite(x), x, 0) for name, x in observed.items()})

    def update(self, state: Calibration, observed: Mapping[str, jax.Array]) -> Calibration:
        """The state after one more batch; values that are not finite are left out."""
        averaged = {}
        for name, old in state.ranges.items():
            new = observed[name]
            known = jnp.isfinite(old) & (old > 0)
            following = jnp.where(known, self.decay * old + (1 - self.decay) * new, new)
            averaged[name] = jnp.where(jnp.isfinite(new), following, jnp.where(known, old, 0))
        return Calibration(averaged)
