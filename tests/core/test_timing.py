"""The one timer, on clocks that are made up: what it calls, in which order, and what it makes of the times."""

import itertools

import numpy as np
import pytest

from jaxaccel.core.timing import (
    ROUNDS,
    Times,
    compute_gain,
    count_outside,
    run_repeatedly,
    time_call,
    time_in_turns,
)


def recorded(calls, **seconds):
    """Turns that take so many seconds a call, and write down (name, count)."""

    def turn(name):
        def run(count):
            calls.append((name, count))
            return seconds[name]

        return run

    return {name: turn(name) for name in seconds}


def test_another_one_is_first_in_each_round():
    calls = []
    times = time_in_turns(recorded(calls, a=1.0, b=2.0, c=4.0), rounds=4)
    assert "".join(name for name, _ in calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert {count for _, count in calls} == {1}
    assert times.fastest() == "a" and times.median("b") == 2.0
    assert times.gain("a", over="c") == (4.0, 0.0)


def test_quick_calls_are_repeated_and_one_turn_does_not_count():
    calls = []
    time_in_turns(recorded(calls, quick=0.001, slow=1.0), rounds=3, seconds=0.1)
    assert calls[:5] == [("quick", 1), ("quick", 1), ("slow", 1), ("slow", 1), ("quick", 100)]
    assert set(calls[5:]) == {("quick", 100), ("slow", 1)}


def test_the_budget_ends_the_rounds_after_three():
    calls = []
    times = time_in_turns(recorded(calls, a=1.0), rounds=100, budget=0.0)
    assert len(times.rounds["a"]) == 3


def test_a_machine_that_becomes_busy_hits_both():
    clock = itertools.count()

    def turn(seconds):
        return lambda count: seconds * (10 if next(clock) >= 20 else 1)

    times = time_in_turns({"now": turn(0.001), "before": turn(0.003)})
    assert times.gain("now", over="before") == pytest.approx((3.0, 0.0))


def test_the_noise_is_that_of_the_rounds():
    ratios = [0.5, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 1.01, 1.02, 1.02, 1.03, 1.05, 1.2, 1.5, 3.0]
    shuffled = np.random.default_rng(0).permutation(ratios)
    gain = compute_gain([2.0] * 15, 2.0 * shuffled)
    assert gain == pytest.approx((1.01, 1.01 - 0.96))


def test_the_interval_covers_the_median_of_noise_alone():
    rng = np.random.default_rng(0)
    gains = [compute_gain(*np.exp(rng.normal(0, 0.3, (2, ROUNDS)))) for _ in range(2000)]
    called = np.mean([abs(ratio - 1) > noise for ratio, noise in gains])
    assert 0 < called < 0.06, "where nothing changed, nothing is said to have, but for one in twenty"


def test_how_many_lie_outside():
    """By the table of the sign test."""
    assert [count_outside(n) for n in (1, 2, 5, 6, 8, 9, 15, 20, 30)] == [0, 0, 0, 0, 0, 1, 3, 5, 9]


def test_few_rounds_give_their_range():
    assert compute_gain([1.0, 1.0, 1.0], [2.0, 3.0, 5.0]) == (3.0, 2.0)


def test_calls_are_timed_and_repeated():
    made = []
    assert run_repeatedly(lambda: made.append(0))(5) > 0 and len(made) == 5
    assert time_call(lambda: None, rounds=3) > 0
    assert time_call(lambda: made.append(0), budget=0.0) > 0 and len(made) == 5 + 2 + 3
    assert Times({"x": [1.0, 9.0, 2.0]}).median("x") == 2.0
