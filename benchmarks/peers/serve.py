"""The other end of `process.Process`. It needs no more than Python: JAX may not be installed where peers run."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answers commands, a line of JSON each, until there are no more."""
    # Whatever else is printed must not come between the answers.
    answers = sys.stdout
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            answered = answer(json.loads(line))
        print(json.dumps(answered), file=answers, flush=True)


def count_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def time_steps(advance: Callable[[int], Any], steps: int) -> float:
    """Times `steps` steps, in seconds each, after one that does not count; `advance` takes some and waits."""
    advance(1)
    start = time.perf_counter()
    advance(steps)
    return (time.perf_counter() - start) / steps


def time_calls(call: Callable[[], Any], times: int) -> float:
    """Times calls, in seconds each, after one that does not count."""
    return time_steps(lambda count: [call() for _ in range(count)], times)


def repeat_call(call: Callable[[], Any], times: int) -> tuple[Any, list[float]]:
    """Repeats a call; returns the last result, and the seconds of each."""
    seconds, result = [], None
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, seconds
