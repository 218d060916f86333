"""What a run leaves behind while it goes: metrics.jsonl, what loggers make of it, and a line or a bar to look at."""

import contextlib
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxaccel.core.files import write_text
from jaxaccel.core.platform import platform_of
from jaxaccel.tasks.metrics import Scores, score_text
from jaxaccel.training.loggers import Logger, Loggers, TensorBoard
from jaxaccel.training.state import StepMetrics


def max_calls_ahead(mesh: Mesh) -> int:
    """Calls that may be under way on the devices before the host waits for the first of them.

    None on several CPU devices, where executions at the same time compete for threads until none moves.
    """
    return 0 if platform_of(mesh) == "cpu" and mesh.size > 1 else 2


LINE_SECONDS = 10.0
"""Between two plain lines of training metrics where there is no terminal."""


class RunLog:
    """Writes the metrics of one run, tells its loggers of them, and shows its progress on standard output.

    On a terminal there is a bar with the time left; elsewhere plain lines now and then. With `show` False
    (other processes of the same run) nothing is shown, nothing written and no logger told.
    """

    def __init__(
        self, directory: Path, *, steps: int, epoch: Callable[[int], float], done: int, show: bool
    ) -> None:
        self.steps, self.epoch = steps, epoch
        self._show = show
        self._console = _console(quiet=not show)
        self._terminal = show and self._console.is_terminal
        self._last_line = time.monotonic()
        self._directory, self._done = directory, done
        self._file = self._loggers = None
        self._bar = Progress(
            TextColumn("{task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
            console=self._console, disable=not self._terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=steps, completed=done, epoch="", text="")
        self._bar.start()

    def open(self, loggers: Sequence[Logger] = ()) -> None:
        """Begins to write into the directory, and to tell `loggers`: before it nothing is written, only shown."""
        if self._show:
            path = _truncated(self._directory / "metrics.jsonl", self._done)
            self._file = path.open("a", encoding="utf-8")
            self._loggers = Loggers([TensorBoard(self._directory, self._done), *loggers], self.say)

    @contextlib.contextmanager
    def working(self, what: str, total: int) -> Iterator[Callable[[int], Any]]:
        """A second bar while something long is done; gives what is to be called with each number of things done."""
        task = self._bar.add_task("", total=total, epoch=what, text="")
        yield lambda n: self._bar.advance(task, n)
        self._bar.remove_task(task)

    def say(self, text: str) -> None:
        """One line for the person who looks on."""
        self._console.print(text, markup=False)

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the training steps up to `step`."""
        self._write("train", step, metrics)
        text = f"loss {score_text(metrics['loss'])}  {metrics['examples_per_second']:,.0f} examples/s"
        self._bar.update(self._task, completed=step, epoch=f"epoch {self._epoch(step)}", text=text)
        if not self._terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            left = (self.steps - step) * metrics["step_seconds"]
            self.say(f"step {step}/{self.steps}  epoch {self._epoch(step)}  {text}  {left:.0f} s left")

    def evaluated(
        self, step: int, metrics: Mapping[str, float], replicas: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Metrics of the evaluation split after `step` steps; of several replicas, those of each are written too."""
        each = enumerate(replicas if len(replicas) > 1 else ())
        self._write(
            "eval", step, {**metrics, **{f"{name}/{i}": x for i, row in each for name, x in row.items()}}
        )
        shown = "  ".join(f"{name} {score_text(value)}" for name, value in metrics.items())
        self.say(f"epoch {self._epoch(step):>6}  step {step:>6}  evaluation: {shown}")

    def close(self) -> None:
        """Ends the bar and closes the file and the loggers."""
        self._bar.stop()
        if self._file and self._loggers:
            self._loggers.close()
            self._file.close()
            self._file = self._loggers = None

    def _epoch(self, step: int) -> str:
        return f"{self.epoch(step):.1f}"

    def _write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None or self._loggers is None:
            return
        # JSON has no NaN.
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        row = {"kind": kind, "step": step, "epoch": round(self.epoch(step), 4), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._loggers.log(step, {f"{kind}/{name}": value for name, value in metrics.items()})


class Meter:
    """Collects the metrics of calls without making the device wait.

    A call's metrics are looked at only when `max_calls_ahead` later calls are under way; rows go to the log about every
    `every` steps. `examples` says how many a run has seen after so many steps.
    """

    def __init__(
        self, log: RunLog, *, examples: Callable[[int], int], done: int, every: int, stops: bool, lag: int
    ) -> None:
        self.failed: int | None = None
        """The first step that came out non-finite, where that stops the run."""
        self.log, self._examples, self._every, self._stops = log, examples, every, stops
        self._lag = lag
        self._lost: set[int] = set()
        self._under_way: deque[tuple[range, StepMetrics]] = deque()
        self._window: list[StepMetrics] = []
        self._first = self._done = self._reported = done
        self._seconds, self._clock = 0.0, time.perf_counter()

    @property
    def examples_per_second(self) -> float:
        """Over the whole run, evaluation and checkpoints left out."""
        return (self._examples(self._done) - self._examples(self._first)) / max(self._seconds, 1e-9)

    def push(self, call: range, metrics: StepMetrics) -> None:
        """Takes in the metrics of the call that was just started."""
        metrics.finite.copy_to_host_async()
        self._under_way.append((call, metrics))
        while len(self._under_way) > self._lag:
            self._take()

    def flush(self) -> None:
        """Waits for all calls under way and writes the row."""
        while self._under_way:
            self._take()
        self._report()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is not training time."""
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start

    def _take(self) -> None:
        call, metrics = self._under_way.popleft()
        finite = np.asarray(metrics.finite)  # all else stays on the device until a row is written
        if not finite.all() and self.failed is None:
            self._tell(call, finite)
        self._window.append(metrics)
        self._done = call.stop
        if self._done - self._reported >= self._every:
            self._report()

    def _tell(self, call: range, finite: np.ndarray) -> None:
        """Of steps that are not finite: `finite` is (steps,), or (steps, replicas)."""
        columns = finite.reshape(len(finite), -1)
        for replica, column in enumerate(columns.T):
            if column.all() or replica in self._lost:
                continue
            bad = call.start + int(column.argmin())
            if not self._stops:
                self.log.say(f"step {bad}: loss or gradient not finite, {(~column).sum()} step(s) left out")
                continue
            self._lost.add(replica)
            if len(self._lost) == columns.shape[1]:
                self.failed = bad
            else:
                self.log.say(
                    f"step {bad}: replica {replica} is not finite; it stays as it was before that step"
                )

    def _report(self) -> None:
        steps = self._done - self._reported
        if not steps:
            return
        examples = self._examples(self._done) - self._examples(self._reported)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._seconds += seconds
        rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(self._window))
        good = rows.finite if rows.finite.any() else np.ones_like(rows.finite)
        values = {name: _mean(m.total[good], m.count[good]) for name, m in rows.means.items()}
        values |= {
            "learning_rate": float(rows.learning_rate[-1][good[-1]].mean()),
            "gradient_norm": float(rows.gradient_norm[-1][good[-1]].mean()),
            "step_seconds": seconds / steps,
            "examples_per_second": examples / seconds,
        }
        self._window, self._reported = [], self._done
        self.log.train(self._done, values)


def _mean(total: np.ndarray, count: np.ndarray) -> float:
    """The mean of sums; 0 where nothing was counted, as `Mean.value` has it."""
    return float(total.sum() / max(count.sum(), 1e-9))


def announce_log() -> None:
    """Shows what the package logs (a data set being prepared, say) on standard output, each message once."""
    logger = logging.getLogger("jaxaccel")
    logger.propagate = False  # a library may have given the root logger a handler that prints as well
    if not any(isinstance(handler, _Printed) for handler in logger.handlers):
        logger.addHandler(_Printed())
        logger.setLevel(logging.INFO)


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def _console(quiet: bool) -> Console:
    # In a notebook Rich would make an HTML block of each line, and a kernel's output claims to be a terminal.
    terminal = False if "ipykernel" in sys.modules else None
    return Console(
        file=sys.stdout, quiet=quiet, soft_wrap=True, highlight=False,
        force_jupyter=False, force_terminal=terminal,
    )  # fmt: skip


def read(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; lines that are damaged or cut off are left out, and no others."""
    path = directory / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [row for line in text.split("\n") if (row := _row(line)) is not None]


def _row(line: str) -> dict[str, Any] | None:
    """What `RunLog` wrote as a line; None where it did not."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None
    numbers = [value for name, value in row.items() if name != "kind"]
    if not all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in numbers):
        return None
    return row if type(row.get("step")) is int and row.get("epoch") is not None else None


def read_evaluations(directory: Path, done: int, replicas: int = 1) -> list[Sequence[Scores]]:
    """What the evaluations of a run up to step `done` found: a row a replica for each evaluation, in order."""
    rows = [row for row in read(directory) if row["kind"] == "eval" and row["step"] <= done]
    if replicas == 1:
        return [[row] for row in rows]
    return [[_of_replica(row, i) for i in range(replicas)] for row in rows]


def _of_replica(row: Mapping[str, Any], i: int) -> dict[str, Any]:
    return {name.removesuffix(f"/{i}"): value for name, value in row.items() if name.endswith(f"/{i}")}


def _truncated(path: Path, done: int) -> Path:
    """Drops the rows behind step `done`: a resumed run writes them again."""
    if path.exists():
        rows = [row for row in read(path.parent) if row["step"] <= done]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
