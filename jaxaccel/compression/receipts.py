"""What a stage is worth and what it costs, measured: one receipt each."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from jaxaccel.compression.stage import Setting, Stage, iterate_batches
from jaxaccel.core import runtime
from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.timing import Times, run_repeatedly, time_in_turns
from jaxaccel.training.evaluation import evaluate_metrics
from jaxaccel.transforms.params import count_multiply_adds
from jaxaccel.transforms.params.save import transfer_seconds

PyTree = Any
TURN_SECONDS = 0.01
"""That a turn takes about: quick calls are repeated."""
MAX_SECONDS = 60.0
"""Seconds after which no further round of a slow model begins."""


@dataclasses.dataclass(frozen=True)
class Receipt:
    """One row of receipts.json. Times are of this device; ratios above 1 mean faster than the step before.

    The origin's times are as measured. A later step's are the step before's over the ratio that was measured in turns
    with it: a machine that was busier for one step than for another changes no row, and rows agree with their ratios.
    """

    step: str
    scores: dict[str, float]
    """The task's metrics over the whole evaluation split."""
    parameters: int
    """Numbers that the model computes with."""
    nonzeros: int
    """How many of them are not 0."""
    flops: int
    """Of one example: two for each multiply-add of the products, zeros too."""
    bytes: int
    """Of all arrays as they stand in memory."""
    packed_bytes: int
    """Of the packed file."""
    seconds_at_10_mbit: float
    """To transfer the packed file at 10 Mbit/s."""
    seconds_at_1_gbit: float
    latency_ms: float
    """Time of a call with one example."""
    latency_gain: float | None
    """Median over pairs of turns: the step before's time over this one's; None for the first."""
    throughput: float
    """Examples a second in batches of `batch`."""
    throughput_gain: float | None
    batch: int
    peak_bytes: int | None
    """That a call with a batch allocates, where the backend says."""
    seconds: float
    """That the step took."""
    latency_noise: float | None = None
    """How far `latency_gain` may be off: a change from 1 that is no larger is none."""
    throughput_noise: float | None = None
    """The same of `throughput_gain`."""
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    """Median seconds of the turns themselves: ``one`` example, a ``batch``, and the step before's beside them,
    ``one_before`` and ``batch_before``."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A stage ready to be timed."""

    one: Callable[[], Any]
    many: Callable[[], Any]
    peak_bytes: int | None


def make_receipt(
    name: str, stage: Stage, setting: Setting, before: Stage | None, last: Receipt | None, seconds: float
) -> Receipt:
    """Evaluates and times `stage`, each call beside one of the stage `before`, whose receipt is `last`.

    Raises:
      UserError: the task does not report its headline.
    """
    assert stage.file is not None
    now, old = compile_stage(stage, setting), compile_stage(before, setting) if before else None
    one = time_beside("one", now.one, old.one if old else None)
    many = time_beside("batch", now.many, old.many if old else None)
    latency = one.gain("one", over="one_before") if old else None
    throughput = many.gain("batch", over="batch_before") if old else None
    measured = {name: times.median(name) for times in (one, many) for name in times.rounds}
    size = stage.file.stat().st_size
    return Receipt(
        step=name, scores=evaluate_stage(name, stage, setting), parameters=count_numbers(stage.variables),
        nonzeros=count_numbers(stage.variables, lambda x: int(np.count_nonzero(x))),
        flops=2 * sum(count_multiply_adds(stage.call, stage.variables, *setting.inputs(1)).values()),
        bytes=sum(x.nbytes for x in jax.tree.leaves(stage.variables)), packed_bytes=size,
        seconds_at_10_mbit=transfer_seconds(size, 10e6), seconds_at_1_gbit=transfer_seconds(size, 1e9),
        latency_ms=last.latency_ms / latency.ratio if last and latency else 1000 * measured["one"],
        latency_gain=latency and latency.ratio,
        throughput=last.throughput * throughput.ratio if last and throughput else setting.batch / measured["batch"],
        throughput_gain=throughput and throughput.ratio,
        batch=setting.batch, peak_bytes=now.peak_bytes, seconds=seconds,
        latency_noise=latency and latency.noise, throughput_noise=throughput and throughput.noise,
        measured=measured,
    )  # fmt: skip


def evaluate_stage(name: str, stage: Stage, setting: Setting) -> dict[str, float]:
    """The task's metrics of a stage over the whole evaluation split."""
    task, size = setting.task, setting.batch
    with Progress(transient=True, disable=jax.process_index() > 0) as bar:
        line = bar.add_task(f"{name}: evaluation", total=-(-len(setting.test) // size))
        found = evaluate_metrics(
            task, stage.run, stage.variables, setting.test, size, lambda: bar.advance(line)
        )
    task.headline.check(type(task).__name__, found)
    return found


def compile_stage(stage: Stage, setting: Setting) -> Compiled:
    """Calls with one example and with a batch of the evaluation split."""
    batch = next(iterate_batches(setting.test, setting.task, setting.batch))
    calls = []
    for part in ({name: x[:1] for name, x in batch.items()}, batch):
        inputs = jax.device_put(setting.task.inputs(setting.task.features(part)))
        program = jax.jit(stage.run).lower(stage.variables, *inputs).compile()
        calls.append((program, inputs))
    variables = jax.device_put(stage.variables)
    one, many = ((lambda p=p, x=x: p(variables, *x)) for p, x in calls)
    return Compiled(one, many, runtime.peak_bytes(calls[1][0]))


def time_beside(name: str, now: Callable[[], Any], before: Callable[[], Any] | None) -> Times:
    """Times the call `now` under that name and, where there is one, `before` under ``NAME_before``."""
    turns = {name: run_repeatedly(now)}
    if before is not None:
        turns[f"{name}_before"] = run_repeatedly(before)
    return time_in_turns(turns, seconds=TURN_SECONDS, budget=MAX_SECONDS)


def count_numbers(variables: PyTree, count: Callable[[Any], int] = lambda x: x.size) -> int:
    """Over the parameters, factors of low-rank ones counted and other compressed ones as what they stand for."""
    params = variables.get("params", variables)
    leaves = jax.tree.leaves(params, is_leaf=lambda x: is_compressed(x) and not isinstance(x, LowRankArray))
    return sum(count(x.materialize() if is_compressed(x) else x) for x in leaves)


def encode_receipts(receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """Rows for receipts.json."""
    return [dataclasses.asdict(row) for row in receipts]


def decode_receipts(row: dict[str, Any]) -> Receipt:
    """The row of receipts.json, where null is a metric that was no finite number."""
    scores = {name: math.nan if value is None else value for name, value in row["scores"].items()}
    return dataclasses.replace(Receipt(**row), scores=scores)
