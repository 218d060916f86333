"""How contenders take turns: another one first in each round, so that what else the machine does hits them all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Turn = Callable[[int], float]
"""Seconds a call, over so many calls."""


def timed(call: Callable[[], Any]) -> Turn:
    """Turns of a call that waits for its result."""

    def turn(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    return turn


def measured(turns: Mapping[str, Turn], seconds: float, rounds: int, budget: float) -> dict[str, list[float]]:
    """Milliseconds a call of each, round by round; another one is first in each round.

    A turn takes about `seconds`. One of each does not count, in which the heap grows; after the third round, rounds end
    when `budget` seconds are spent.
    """
    counts = {name: max(1, round(seconds / min(turn(1), turn(1)))) for name, turn in turns.items()}
    for name, turn in turns.items():
        turn(counts[name])
    times: dict[str, list[float]] = {name: [] for name in turns}
    names, start = list(turns), time.perf_counter()
    for number in range(rounds):
        if number > 2 and time.perf_counter() - start > budget:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(1e3 * turns[name](counts[name]))
    return times


def repeated(call: Callable[[], Any], times: int) -> tuple[Any, list[float]]:
    """The last result of a call, and the seconds of each."""
    seconds, result = [], None
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, seconds


def spread(values: Sequence[float], unit: str = "") -> dict[str, float]:
    """Median and range."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name + unit: value for name, value in found.items()}


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def span(row: Mapping[str, float]) -> str:
    """Median and range of milliseconds, for a table."""
    return f"{row['median_ms']:.3g} ({row['min_ms']:.3g}–{row['max_ms']:.3g})"
