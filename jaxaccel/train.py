"""The training loop: ``python -m jaxaccel.train [RECIPE] [--overrides]``, or ``ja.train(recipe)``.

Without a recipe it trains `digits`, whose data comes with the package. --list shows the recipes, and a path
to a Python file with a function `recipe()` is a recipe too. Every value of a recipe is a flag.
"""

import dataclasses
import functools
import json
import shlex
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxaccel import augment, cli, curves, pacing, rundir, runtime
from jaxaccel.checkpoint import Checkpoints, digest, fork
from jaxaccel.data import open_source
from jaxaccel.data.feed import choose, resident_feed, stream_feed
from jaxaccel.data.order import Sequential, Shuffled
from jaxaccel.errors import UserError
from jaxaccel.metrics import add
from jaxaccel.modules import as_model, output_shape
from jaxaccel.parallel import batch_sharding, make_mesh, replicated, state_sharding
from jaxaccel.recipe import Recipe
from jaxaccel.runlog import Meter, RunLog, announce
from jaxaccel.step import Training, TrainState, several, several_evaluations
from jaxaccel.tasks.task import Batch


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished (or, by SIGTERM, interrupted) run."""

    directory: Path
    summary: dict[str, Any]
    """What result.json holds."""
    training: Training
    state: TrainState

    def predict(self, batch: dict[str, Any]) -> Any:
        """The task's predictions for a batch, as the data set gives it: logits (B, classes) for images."""
        return self._predict(self.state.weights(), self.state.model_state, batch)

    @functools.cached_property
    def _predict(self) -> Callable[..., Any]:
        training = self.training
        return jax.jit(lambda w, s, batch: training.task.predict(training.bind(w, s), batch))


def train(
    recipe: Recipe,
    *,
    run: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    fork_from: Path | str | None = None,
    source: Path | None = None,
) -> TrainResult:
    """Trains `recipe` and writes all about it to `run`.

    Args:
      recipe: the experiment.
      run: directory of the run, by default ``runs/NAME``.
      resume: go on from the newest whole checkpoint there, bit for bit.
      overwrite: replace what is there.
      fork_from: directory of another run, whose weights (the best ones) this one starts from.
      source: the Python file that defines the recipe, to be kept with the run.

    Raises:
      UserError: the recipe asks for what cannot be; the message is one line that says what to do.
      OSError: the run directory cannot be written.
    """
    started = time.perf_counter()
    setup = runtime.setup()
    announce()

    # ---- mesh -----------------------------------------------------------------------------------------
    mesh = make_mesh(recipe.mesh)
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if recipe.batch_size % (split * recipe.optimizer.accumulate):
        raise UserError(
            f"batch_size {recipe.batch_size} must be a multiple of {split * recipe.optimizer.accumulate}: "
            f"{split} devices along data and fsdp, {recipe.optimizer.accumulate} parts to accumulate"
        )

    # ---- data -----------------------------------------------------------------------------------------
    task, data = recipe.task, recipe.data
    where = {"directory": data.dir, "downloads": data.downloads}
    train_source = open_source(data.name, data.train_split, **where)
    eval_source = open_source(data.name, data.eval_split, **where)
    facts = task.facts(train_source.features)
    shuffled = Shuffled(recipe.seed, len(train_source), recipe.batch_size)
    sequential = Sequential(len(eval_source), recipe.batch_size)

    # ---- model, optimizer, step -----------------------------------------------------------------------
    epoch_steps = len(train_source) / recipe.batch_size
    steps = max(1, round(recipe.epochs * epoch_steps))
    example = task.element(train_source[0]) | {"index": np.int32(0), "mask": np.float32(1)}
    batch_shape = {
        name: jax.ShapeDtypeStruct((recipe.batch_size, *np.shape(x)), np.asarray(x).dtype)
        for name, x in example.items()
    }
    inputs = jax.eval_shape(task.inputs, batch_shape)
    model = as_model(recipe.model, facts, inputs)
    task.check(output_shape(model, inputs), facts)
    schedule = recipe.schedule.build(recipe.optimizer.learning_rate, steps)
    training = Training(
        model, task, recipe.optimizer.build(schedule), schedule, augment.chain(*recipe.augment),
        recipe.seed, recipe.optimizer.accumulate, recipe.optimizer.ema, recipe.remat, recipe.non_finite,
    )  # fmt: skip
    state_shape = jax.eval_shape(training.init)
    shardings = state_sharding(state_shape, mesh)
    flops = pacing.flops(training.step, state_shape, batch_shape)

    # ---- state: new, resumed or forked ----------------------------------------------------------------
    origin = Path(fork_from) if fork_from else None
    weights = Checkpoints.weights_of(origin, task.metric) if origin else {}
    directory = Path(run) if run else Path("runs") / recipe.name
    rundir.prepare(directory, recipe, source=source, resume=resume, overwrite=overwrite)
    checkpoints = Checkpoints(directory / "checkpoints", keep=recipe.keep, metric=task.metric)
    restored = checkpoints.restore(state_shape, shardings) if resume else None
    if restored:
        done, state = restored
    else:
        done, state = 0, jax.jit(training.init, out_shardings=shardings)()
        state = fork(state, weights, origin) if origin else state

    if restored and done >= steps:
        checkpoints.close()
        return _finished(directory, training, state)

    # ---- data to the device ---------------------------------------------------------------------------
    show = jax.process_index() == 0
    log = RunLog(directory, steps=steps, epoch_steps=epoch_steps, done=done, show=show)
    log.say(_heading(recipe, mesh, directory, len(train_source), state_shape.params, done))
    mode = choose(data.feed, data.resident_share, (train_source, eval_source), task.element)
    if mode == "resident":
        with log.reading(len(train_source) + len(eval_source)) as advance:
            train_feed = resident_feed(train_source, task.element, shuffled, mesh, advance)
            eval_feed = resident_feed(eval_source, task.element, sequential, mesh, advance)
    else:
        train_feed = stream_feed(train_source, task.element, shuffled, mesh, data.workers)
        eval_feed = stream_feed(eval_source, task.element, sequential, mesh, data.workers)

    # ---- compile --------------------------------------------------------------------------------------
    def constrain(batch: Batch) -> Batch:
        return jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))

    eval_steps = max(1, round(recipe.eval_every * epoch_steps))
    per_call = 1 if mode == "stream" else pacing.steps_per_call(recipe.steps_per_call, flops, eval_steps)
    cuts = pacing.cuts(steps, eval_steps)
    calls = pacing.calls(cuts, per_call, done)
    eval_calls = [range(i, i + 1) for i in range(len(sequential))]
    compiling = time.perf_counter()
    train_call = jax.jit(
        several(training, constrain), donate_argnums=0, out_shardings=(shardings, replicated(mesh))
    )
    eval_call = jax.jit(several_evaluations(training, constrain), out_shardings=replicated(mesh))
    first = next(train_feed.items(calls[:1]), None)
    compiled = train_call.lower(state, train_feed.arrays, first).compile() if first else None
    compile_seconds = time.perf_counter() - compiling

    def evaluate(state: TrainState) -> dict[str, float]:
        sums = [
            eval_call(state.weights(), state.model_state, eval_feed.arrays, item)
            for item in eval_feed.items(eval_calls)
        ]
        return task.summarise(jax.device_get(add(sums)))

    # ---- train ----------------------------------------------------------------------------------------
    stop = _StopSignal()
    meter = Meter(
        log, batch_size=recipe.batch_size, done=done, every=max(1, steps // 400),
        stops=recipe.non_finite == "stop",
    )  # fmt: skip
    scores: dict[str, float] = {}
    with stop:
        for call, item in zip(calls, train_feed.items(calls), strict=True):
            run_call = compiled if compiled and len(call) == len(calls[0]) else train_call
            state, metrics = run_call(state, train_feed.arrays, item)
            meter.push(call, metrics)
            stopping = stop.asked(call.stop)
            if call.stop in cuts or stopping:
                meter.flush()
            if meter.failed is not None:
                break
            if call.stop in cuts:
                with meter.paused():
                    scores = evaluate(state)
                    log.evaluated(call.stop, scores)
                    checkpoints.save(call.stop, state, scores)
            elif stopping:
                checkpoints.save(call.stop, state, {})
            if stopping:
                break

    # ---- leave ----------------------------------------------------------------------------------------
    log.close()
    at = int(state.step)
    if meter.failed is not None:
        checkpoints.save(at, dataclasses.replace(state, halted=jnp.bool_(False)))
        checkpoints.close()
        raise UserError(
            f"loss or gradient is not finite at step {meter.failed}: the state before it is saved in {directory}; "
            "lower --optimizer.learning-rate, set --optimizer.clip-norm, or use --non-finite skip"
        )
    checkpoints.close()
    summary = {
        "recipe": recipe.name, "seed": recipe.seed, "steps": at, "epochs": at / epoch_steps, "eval": scores,
        "finished": at == steps, "examples_per_second": meter.examples_per_second,
        "seconds": time.perf_counter() - started, "compile_seconds": compile_seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)), "flops_per_step": flops,
        "peak_bytes": runtime.peak_bytes(compiled), "feed": mode, "steps_per_call": per_call,
        "mesh": dict(mesh.shape), "device_kind": jax.devices()[0].device_kind,
        "device_count": mesh.size, "process_count": setup.processes,
        "state_sha256": digest(state) if setup.processes == 1 else None, "versions": runtime.versions(),
    }  # fmt: skip
    if show:
        rundir.write_json(directory / "result.json", summary)
        curves.draw(directory, f"{recipe.name}: {_scores(scores)}")
        log.say(f"{_scores(scores)} after {summary['seconds']:.0f} s; see {directory}/curves.png" if at == steps
                else f"stopped at step {at} of {steps} and saved; go on with: {_again(directory)}")  # fmt: skip
    return TrainResult(directory, summary, training, state)


def _finished(directory: Path, training: Training, state: TrainState) -> TrainResult:
    """The result of a run that was resumed at its end: there is nothing to do, and nothing is written."""
    path = directory / "result.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if jax.process_index() == 0:
        print(f"{directory} is finished: {_scores(summary.get('eval', {}))}; see {directory}/curves.png")
    return TrainResult(directory, summary, training, state)


class _StopSignal:
    """Turns SIGTERM and Ctrl-C into a question to ask between calls, while it is entered; once.

    Several processes must all stop at the same step: JAX's own preemption service agrees on one, and catches
    SIGTERM itself.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked(self, step: int) -> bool:
        if jax.process_count() > 1:
            self._asked |= multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True
        self.__exit__()


def _heading(
    recipe: Recipe, mesh: jax.sharding.Mesh, directory: Path, examples: int, params: Any, done: int
) -> str:
    what = f"resuming {recipe.name} at step {done}" if done else f"training {recipe.name}"
    count = sum(x.size for x in jax.tree.leaves(params))
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}{f' ({axes})' if axes else ''}"
    return (
        f"{what}: {examples:,} examples of {recipe.data.name}, {count:,} parameters, {devices}, "
        f"into {directory}"
    )


def _scores(scores: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items()) or "not evaluated"


def _again(directory: Path) -> str:
    """What to type to go on: the same words as before, and --resume."""
    if rundir.command() is None:
        return f"ja.train(recipe, run={str(directory)!r}, resume=True)"
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    return shlex.join(["python", "-m", "jaxaccel.train", *words, "--resume"])


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    read = cli.read("python -m jaxaccel.train", __doc__ or "", argv)
    if read is None:
        return 0
    recipe, options, module = read
    source = Path(module.__file__) if not module.__name__.startswith("jaxaccel.") else None
    train(
        recipe, run=options.run, resume=options.resume, overwrite=options.overwrite,
        fork_from=options.fork_from, source=source,
    )  # fmt: skip
    return 0


class _CallableModule(types.ModuleType):
    """This module, for ``python -m``, that may also be called, for ``ja.train(recipe)``."""

    def __call__(self, *args: Any, **kwargs: Any) -> TrainResult:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
