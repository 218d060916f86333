"""When a run evaluates, and how many steps one call of the device does."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax


def cuts(steps: int, interval: int) -> list[int]:
    """The steps after which the run evaluates and saves: each `interval`, and the end."""
    return [*range(interval, steps - interval // 2, interval), steps]


def calls(cuts: Sequence[int], per_call: int, done: int = 0) -> list[range]:
    """The steps of each call that is left after `done` steps: `per_call` of them, fewer before a cut.

    Calls are counted from the start of the run, so that a resumed run repeats the very same compiled calls; only
    where it was stopped with another `per_call` is the first one cut short.
    """
    return [
        range(max(start, done), min(start + per_call, cut))
        for before, cut in itertools.pairwise([0, *cuts])
        for start in range(before, cut, per_call)
        if min(start + per_call, cut) > done
    ]


def steps_per_call(wanted: int, flops: float, boundary: int) -> int:
    """How many steps to fuse: enough to hide the dispatch, a divisor of `boundary` where there is one near."""
    if not wanted:
        # On the CPU steps are unrolled (see step.loop), so each one more costs compile time; and calls above
        # some milliseconds gain nothing. The figure is about what one core computes in 5 ms.
        wanted = min(8, int(1 + 1e9 // max(flops, 1))) if jax.default_backend() == "cpu" else 32
    divisors = [k for k in range(1, min(wanted, boundary) + 1) if boundary % k == 0]
    return max(divisors) if 2 * max(divisors) > wanted else min(wanted, boundary)


def flops(step: Callable, state: Any, batch: Any) -> float:
    """Floating-point operations of one step, counted by XLA before it optimises."""
    cost = jax.jit(step).lower(state, batch).cost_analysis()
    return float(cost.get("flops", 0.0)) if cost else 0.0
