"""The learning rate over a run."""

import dataclasses
from typing import Literal

import optax

from jaxaccel.core.options import NonNegative, Options, Share


@dataclasses.dataclass(frozen=True)
class Schedule(Options):
    """The learning rate over the run, as a share of its peak; all times are fractions of the whole run."""

    name: Literal["constant", "cosine", "linear", "one_cycle", "piecewise"] = "cosine"
    """Shape of the schedule. cosine: Loshchilov & Hutter 2017; one_cycle: Smith & Topin 2019, warm-up and
    decay both by cosine."""
    warmup: Share = 0.0
    """Share of the run in which the learning rate climbs from 0 to its peak."""
    final: Share = 0.0
    """Learning rate at the end, as a share of the peak (cosine, linear, one_cycle)."""
    boundaries: tuple[Share, ...] = (0.5, 0.75)
    """Shares of the run after which piecewise drops the learning rate."""
    factor: NonNegative = 0.1
    """Multiply the learning rate by this at each boundary of piecewise."""

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """step -> learning rate, for a run of `steps` steps."""
        warmup = round(self.warmup * steps)
        decay = max(steps - warmup, 1)
        if self.name == "constant":
            after: optax.Schedule = optax.constant_schedule(peak)
        elif self.name == "linear":
            after = optax.linear_schedule(peak, peak * self.final, decay)
        elif self.name == "piecewise":
            at: dict[int, float] = {}
            for boundary in self.boundaries:  # several may come to one step
                step = max(round(boundary * steps) - warmup, 0)
                at[step] = at.get(step, 1.0) * self.factor
            after = optax.piecewise_constant_schedule(peak, at)
        else:
            after = optax.cosine_decay_schedule(peak, decay, alpha=self.final)
        if not warmup:
            return after
        if self.name == "one_cycle":
            half_cosine = optax.cosine_decay_schedule(peak, warmup)
            climb: optax.Schedule = lambda step: peak - half_cosine(step)  # noqa: E731
        else:
            climb = optax.linear_schedule(0.0, peak, warmup)
        return optax.join_schedules([climb, after], [warmup])
