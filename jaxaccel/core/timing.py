"""How long calls take, measured in turns: whatever else the machine does meanwhile hits all contenders alike."""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Turn = Callable[[int], float]
"""Makes that many calls; returns the seconds of one."""
ROUNDS = 15
"""Rounds of a comparison, by default."""
MIN_ROUNDS = 3
"""Rounds that are made whatever they cost."""
DOUBT = 0.05
"""Probability that the true median lies outside the interval from which `Gain.noise` is read."""


class Gain(NamedTuple):
    """How many times as fast one contender is as another."""

    ratio: float
    """Median over the rounds of the other's time divided by this one's."""
    noise: float
    """Larger distance from `ratio` to the ends of its interval. A gain that differs less from 1 is none."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds a call of each contender, round by round."""

    rounds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.rounds[name])

    def gain(self, name: str, over: str) -> Gain:
        """How many times as fast `name` is as `over`, paired by round."""
        return compute_gain(self.rounds[name], self.rounds[over])

    def fastest(self) -> str:
        """The contender with the lowest median; the first one of equals."""
        return min(self.rounds, key=self.median)


def time_in_turns(
    turns: Mapping[str, Turn], *, rounds: int = ROUNDS, seconds: float = 0.0, budget: float = math.inf
) -> Times:
    """Times contenders in rounds. Each round starts with another one of them.

    Each is called twice first, which compiles and warms caches, and where a turn has several calls, one turn does not
    count, in which the heap grows.

    Args:
      turns: contenders by name; `run_repeatedly` makes one of a call.
      rounds: at most that many.
      seconds: that a turn takes about; quick calls are repeated.
      budget: seconds after which no further round begins, once there are `MIN_ROUNDS`.
    """
    counts = {name: max(1, round(seconds / max(min(turn(1), turn(1)), 1e-9))) for name, turn in turns.items()}
    for name, turn in turns.items():
        if counts[name] > 1:
            turn(counts[name])
    times: dict[str, list[float]] = {name: [] for name in turns}
    names, end = list(turns), time.perf_counter() + budget
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        first = number % len(names)
        for name in itertools.chain(names[first:], names[:first]):
            times[name].append(turns[name](counts[name]))
    return Times(times)


def time_call(
    call: Callable[[], Any], *, rounds: int = ROUNDS, seconds: float = 0.0, budget: float = math.inf
) -> float:
    """Median seconds of one call, its result waited for."""
    return time_in_turns({"": run_repeatedly(call)}, rounds=rounds, seconds=seconds, budget=budget).median("")


def run_repeatedly(call: Callable[[], Any]) -> Turn:
    """Turns of `call`, which wait for the JAX arrays in each result."""

    def turn(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(call())
        return (time.perf_counter() - start) / count

    return turn


def compute_gain(now: Sequence[float], before: Sequence[float]) -> Gain:
    """The gain of `now` over `before`, seconds of the same rounds.

    The interval of the median is that of a sign test, which asks nothing of how times are distributed: of 15 ratios
    in order it reaches from the 4th to the 12th (96%). Of fewer than 6 it is their range.
    """
    ratios = sorted(b / n for n, b in zip(now, before, strict=True))
    ratio, tail = statistics.median(ratios), count_outside(len(ratios))
    return Gain(ratio, max(ratio - ratios[tail], ratios[-1 - tail] - ratio))


def count_outside(n: int) -> int:
    """How many of `n` values in order lie outside the interval of their median, at either end."""
    tail, below = 0, 1.0
    while 2 * (below + math.comb(n, tail + 1)) <= DOUBT * 2.0**n:
        tail += 1
        below += math.comb(n, tail)
    return tail
