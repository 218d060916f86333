"""The training loop, from a recipe to its result."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core import runtime
from jaxaccel.core.options import checked
from jaxaccel.data.elements import read_elements
from jaxaccel.data.opening import open_splits
from jaxaccel.data.order import Phase, Sequential
from jaxaccel.distributed import batch_sharding, check_split, make_mesh, peers, placed
from jaxaccel.distributed.agreement import check_same, leaves
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import as_model, output_shape, takes
from jaxaccel.optim.averaging import reestimator
from jaxaccel.tasks.metrics import Mean, Scores, add
from jaxaccel.tasks.task import Batch, check_metrics
from jaxaccel.training import curves, initial, pacing, rundir, runlog, saved
from jaxaccel.training.checkpoint import Checkpoints, digest, placed_like, restore
from jaxaccel.training.facts import Facts, fitted_options
from jaxaccel.training.feed import batch_shape, choose, resident_feed, stream_feed
from jaxaccel.training.fuse import gather, several, several_evaluations
from jaxaccel.training.loggers import Logger, Maker, make_loggers
from jaxaccel.training.provenance import compare_data, record_data
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import said_of, to_json
from jaxaccel.training.replicas import Replicas, spread
from jaxaccel.training.result import TrainResult, finished, task_of
from jaxaccel.training.runlog import Meter, RunLog, announce, lag
from jaxaccel.training.saved import CHECKPOINTS
from jaxaccel.training.signals import StopSignal
from jaxaccel.training.state import TrainState
from jaxaccel.training.sweep import keep_best, points, training_of
from jaxaccel.training.wording import again, early_text, heading, replicas_text, scores_text


@checked
def train(
    recipe: Recipe,
    *,
    run: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    init_from: Path | str | None = None,
    source: Path | None = None,
    trust: bool = False,
    loggers: Sequence[Logger | Maker] = (),
) -> TrainResult:
    """Trains `recipe` and writes all about it to `run`.

    Args:
      recipe: the experiment.
      run: directory of the run, by default ``runs/NAME``.
      resume: go on from the newest whole checkpoint there, bit for bit.
      overwrite: replace what is there.
      init_from: another run's directory (its best weights count) or a file with weights, which this one starts from.
      source: the Python file that defines the recipe, to be kept with the run.
      trust: execute code that a teacher's run brings along, also where somebody else wrote it.
      loggers: what is told of the metrics besides metrics.jsonl and TensorBoard: a `Logger`, or a function of
        (recipe, directory) that makes one, in the first process alone. One that raises is left out from there on.

    Raises:
      UserError: the recipe asks for what cannot be; the message is one line that says what to do.
      OSError: the disk is full, or fails.
    """
    with contextlib.ExitStack() as leave:
        return _train(recipe, run, resume, overwrite, init_from, source, trust, loggers, leave)


def _train(
    recipe: Recipe,
    run: Path | str | None,
    resume: bool,
    overwrite: bool,
    init_from: Path | str | None,
    source: Path | None,
    trust: bool,
    loggers: Sequence[Logger | Maker],
    leave: contextlib.ExitStack,
) -> TrainResult:
    started = time.perf_counter()
    setup = runtime.setup()
    announce()
    leave.enter_context(peers.watched())
    check_same(
        {
            **leaves(to_json(recipe)),
            "run": run,
            "resume": resume,
            "overwrite": overwrite,
            "init_from": init_from,
        }
    )

    # ---- mesh -----------------------------------------------------------------------------------------
    mesh = make_mesh(recipe.mesh)
    # Replicas are spread over the devices whole, and have nothing to tell each other; else batches are split.
    split = not points(recipe)
    shared_by = mesh.shape["data"] * mesh.shape["fsdp"] if split else 1
    pacing.check_batches(recipe, shared_by)

    # ---- data -----------------------------------------------------------------------------------------
    task, data = recipe.task, recipe.data
    splits = open_splits(
        data.name, train=data.train_split, evaluation=data.eval_split, validation=data.validation,
        directory=data.dir, downloads=data.downloads,
    )  # fmt: skip
    train_source, held_out = splits.train, splits.held_out
    facts = task.facts(train_source.features)
    fitted = dataclasses.replace(recipe, task=task.fit(train_source))

    # ---- model, optimizer, step -----------------------------------------------------------------------
    plan = pacing.plan(recipe, len(train_source), shared_by)
    steps = plan.steps
    example = read_elements(train_source, task.element, range(1))[0] | {
        "index": np.int32(0),
        "epoch": np.int32(0),
        "mask": np.float32(1),
    }
    inputs = jax.eval_shape(task.inputs, batch_shape(example, recipe.batch_size))
    sample = {"sample": task.sample(train_source)} if takes(recipe.model, "sample") else {}
    model = as_model(recipe.model, {**facts, **sample}, inputs)
    outputs = output_shape(model, inputs)
    task.check(outputs, facts)
    check_metrics(task, outputs, batch_shape(example, recipe.batch_size))
    directory = Path(run) if run else Path("runs") / recipe.name
    teacher = initial.teacher(recipe, facts, model, inputs, directory if resume else None, trust)
    trainings = {
        p.image_size: training_of(fitted, model, plan.ends(), mesh, p.image_size, teacher)
        for p in plan.phases
    }
    training = trainings[plan.phases[-1].image_size]
    known = Facts.of(facts, example, fitted_options(task, task_of(training)))
    step_shape = {p: training.batch_shape(batch_shape(example, p.batch_size)) for p in plan.phases}
    state_shape = jax.eval_shape(training.init)
    shardings = training.sharding(state_shape, mesh)
    left_whole = check_split(state_shape.params, mesh) if split else []
    flops = {p: pacing.flops(trainings[p.image_size].step, state_shape, step_shape[p]) for p in plan.phases}

    # ---- state: new, resumed or from others --------------------------------------------------------------
    origin = Path(init_from) if init_from else None
    start = initial.start(origin, model, inputs, task.headline) if origin else initial.Start()

    def stopped_early(done: int) -> bool:
        evaluations = runlog.evaluations(directory, done, training.count)
        return pacing.stops_early(recipe, plan, done, evaluations)

    whole = (
        directory,
        recipe,
        training,
        state_shape,
        shardings,
        lambda done: done >= steps or stopped_early(done),
        known,
    )
    if resume and (result := finished(*whole)):
        compare_data(directory, data.name, splits.digest)
        return result
    claim = leave.enter_context(
        rundir.claimed(directory, recipe, source=source, resume=resume, overwrite=overwrite)
    )
    if resume and (result := finished(*whole)):  # it had been replaced by one that came to nothing
        return result
    if resume:
        compare_data(directory, data.name, splits.digest)
    restored = restore(directory / CHECKPOINTS, state_shape, shardings) if resume else None
    if restored:
        done, state = restored
    else:
        weights = training.copies({**start.weights, **initial.teacher_weights(teacher, inputs)})
        done, state = 0, jax.jit(training.init, out_shardings=shardings)(weights)

    evaluations = runlog.evaluations(directory, done, training.count) if restored else []
    early = pacing.stops_early(recipe, plan, done, evaluations)

    # ---- data to the device ---------------------------------------------------------------------------
    show = jax.process_index() == 0
    log = RunLog(directory, steps=steps, epoch=plan.epoch, done=done, show=show)
    leave.callback(log.close)
    log.say(heading(recipe, mesh, directory, len(train_source), state_shape.params, training.count, done))
    told = (*left_whole, plan.note(recipe), start.said(origin) if origin else "", said_of(recipe))
    for said in filter(None, told):
        log.say(said)
    shuffled = training.order(len(train_source), plan.phases)
    in_order = [Sequential(len(source), recipe.batch_size) for source in held_out]
    mode = choose(data.feed, data.resident_share, (train_source, *held_out), task.element)
    if mode == "resident":
        with log.reading(len(train_source) + sum(map(len, held_out))) as advance:
            train_feed = resident_feed(train_source, task.element, shuffled, mesh, advance)
            eval_feeds = [
                resident_feed(source, task.element, order, mesh, advance, split=split)
                for source, order in zip(held_out, in_order, strict=True)
            ]
    else:
        if not split:
            raise UserError(
                f"replicas need the data on the device: {option('data.feed', 'resident')}, or fewer examples"
            )
        train_feed = stream_feed(train_source, task.element, shuffled, mesh, data.workers)
        eval_feeds = [
            stream_feed(source, task.element, order, mesh, data.workers)
            for source, order in zip(held_out, in_order, strict=True)
        ]

    # ---- compile --------------------------------------------------------------------------------------
    def constrain(batch: Batch) -> Batch:
        return jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))

    def per_call(phase: Phase, interval: int) -> int:
        return (
            1
            if mode == "stream"
            else pacing.steps_per_call(recipe.steps_per_call, flops[phase], interval, steps)
        )

    @functools.cache
    def program(phase: Phase, length: int) -> jax.stages.Compiled:
        call = jax.jit(
            several(trainings[phase.image_size], constrain), donate_argnums=0,
            out_shardings=(shardings, training.reported(mesh)),
        )  # fmt: skip
        with jax.set_mesh(mesh):  # by which loops over layers keep the examples split
            lowered = call.lower(
                placed(state_shape, shardings),
                train_feed.arrays,
                train_feed.item_shape(step_shape[phase], length),
            )
        return lowered.compile(training.compiler_options(flops[phase]))

    cuts, calls = pacing.timetable(plan, recipe.eval_every, per_call, steps if early else done)
    compiling = time.perf_counter()
    evaluated = several_evaluations(training, constrain if split else lambda batch: batch)
    eval_call = jax.jit(evaluated, out_shardings=training.reported(mesh))
    compiled = program(plan.phase(done), len(calls[0])) if calls else None
    compile_seconds = time.perf_counter() - compiling

    def evaluate(weights: Any, model_state: Any, which: int = 0) -> list[Scores]:
        sums: list[dict[str, Mean]] = []
        feed, calls = eval_feeds[which], [range(i, i + 1) for i in range(len(in_order[which]))]
        for item in feed.items(calls):
            sums.append(eval_call(weights, model_state, feed.arrays, item))
            jax.block_until_ready(sums[max(0, len(sums) - 1 - lag())])
        return training.scores(jax.device_get(add(sums)))

    reestimated = reestimator(
        lambda weights, old, fed: training.observe(weights, old, constrain(gather(*fed)))
    )

    def settled(state: TrainState) -> TrainState:
        if not recipe.optimizer.reestimate or state.average is None:
            return state
        items = train_feed.items([range(i, i + 1) for i in range(recipe.optimizer.reestimate)])
        batches = ((train_feed.arrays, jax.tree.map(lambda x: x[0], item)) for item in items)
        statistics = reestimated(state.weights(), state.model_state, batches)
        return dataclasses.replace(state, model_state=jax.device_put(statistics, shardings.model_state))

    # ---- train ----------------------------------------------------------------------------------------
    claim.begin()
    if show:
        known.write(directory)
    record_data(directory, data.name, splits.digest)
    log.open(make_loggers(loggers, recipe, directory) if show else ())
    checkpoints = Checkpoints(
        directory / CHECKPOINTS, keep=recipe.keep, metric=task.metric, better=task.better
    )
    stop = leave.enter_context(StopSignal())
    meter = Meter(
        log, examples=lambda step: plan.examples(step) * training.count, done=done, every=max(1, steps // 400),
        stops=recipe.non_finite == "stop",
    )  # fmt: skip
    rows: list[Scores] = [{}]
    scored = done
    for ordinal, (call, item) in enumerate(zip(calls, train_feed.items(calls), strict=True)):
        with meter.paused():  # where it is still to be compiled
            run_call = program(plan.phase(call.start), len(call))
        state, metrics = run_call(state, train_feed.arrays, item)
        meter.push(call, metrics)
        stopping = stop.asked(ordinal)
        if call.stop in cuts or stopping:
            meter.flush()
        if meter.failed is not None:
            break
        if call.stop in cuts:
            with meter.paused():
                state = settled(state)
                rows, scored = evaluate(state.weights(), state.model_state), call.stop
                task.headline.check(type(task).__name__, rows[0])
                scores = spread(rows, task.headline)
                log.evaluated(call.stop, scores, rows)
                checkpoints.save(call.stop, state, scores)
                evaluations.append(rows)
                early = pacing.stops_early(recipe, plan, call.stop, evaluations)
            claim.settle()
        elif stopping:
            checkpoints.save(call.stop, state)
        if stopping or early:
            break

    # ---- leave ----------------------------------------------------------------------------------------
    log.close()
    at = int(state.step.max())
    if not calls:  # killed after its last checkpoint, before it wrote its result
        rows, scored = evaluate(state.weights(), state.model_state), at
    scores = spread(rows, task.headline)
    if meter.failed is not None:
        checkpoints.save(at, dataclasses.replace(state, halted=jnp.zeros_like(state.halted)))
        checkpoints.close()
        raise UserError(
            f"loss or gradient is not finite at step {meter.failed}: the state before it is saved in {directory}; "
            f"go on with {option('resume', True)} {option('non_finite', 'skip')}, or start again with a lower "
            f"{option('optimizer.learning_rate')} or with {option('optimizer.clip_norm')}"
        )
    checkpoints.wait()
    best_step = saved.best(directory / CHECKPOINTS, task.metric, task.better)
    early &= at < steps
    over = early or at == steps
    test: dict[str, Any] = {}
    if splits.test and over:
        step, weights = saved.read_weights(directory, task.metric, task.better)
        best_state = [
            placed_like(x, weights, root)
            for x, root in ((state.weights(), "params"), (state.model_state, "model_state"))
        ]
        test = {"test": spread(evaluate(*best_state, which=1), task.headline), "test_step": step}
        log.say(f"test split, best checkpoint (step {step}): {scores_text(test['test'])}")
    checkpoints.close()
    summary = {
        "recipe": recipe.name, "seed": recipe.seed, "steps": at, "epochs": plan.epoch(at), "eval": scores,
        "eval_step": scored, "best_step": best_step, **test, "finished": over, "stopped_early": early,
        "examples_per_second": meter.examples_per_second,
        "seconds": time.perf_counter() - started, "compile_seconds": compile_seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)) // training.count,
        "flops_per_step": flops[plan.phases[-1]],
        "peak_bytes": runtime.peak_bytes(compiled), "feed": mode, "steps_per_call": len(calls[0]) if calls else 0,
        "mesh": dict(mesh.shape), "device_kind": jax.devices()[0].device_kind,
        "device_count": mesh.size, "process_count": setup.processes,
        "state_sha256": digest(state) if setup.processes == 1 else None, "versions": runtime.versions(),
    }  # fmt: skip
    if isinstance(training, Replicas) and scored == at and rows[0]:
        summary["replicas"] = training.table(rows)
        best = keep_best(directory, recipe, source, training, state, rows)
        if show:
            known.write(directory / "best")
        log.say(replicas_text(summary["replicas"], rows, task.metric, best))
    if show:
        rundir.write_json(directory / "result.json", summary)
        curves.draw(directory, f"{recipe.name}: {scores_text(scores)}", task.headline)
        if early:
            log.say(early_text(recipe, at, steps, best_step))
        log.say(f"{scores_text(scores)} after {summary['seconds']:.0f} s; see {directory}/curves.png" if over
                else f"stopped at step {at} of {steps} and saved; go on with: {again()}")  # fmt: skip
    return TrainResult(directory, summary, training, state, known)
