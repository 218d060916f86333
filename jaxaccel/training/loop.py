"""The story of a run, from a recipe to its result."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxaccel.core import runtime
from jaxaccel.core.options import checked
from jaxaccel.distributed import make_mesh, peers
from jaxaccel.distributed.agreement import check_same_everywhere, flatten_values
from jaxaccel.training import run_directory
from jaxaccel.training.batch_size import begin_batch_size, choose_batch_size
from jaxaccel.training.checkpoint import Checkpoints
from jaxaccel.training.conclude import conclude
from jaxaccel.training.data_record import compare_data, record_data
from jaxaccel.training.facts import read_facts
from jaxaccel.training.feed import open_feeds
from jaxaccel.training.fit import fit
from jaxaccel.training.loggers import Logger, Maker, make_loggers
from jaxaccel.training.messages import opening_lines
from jaxaccel.training.problem import Problem
from jaxaccel.training.programs import Programs, make_meter
from jaxaccel.training.progress import find_start, open_progress
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import to_json
from jaxaccel.training.result import TrainResult, find_finished
from jaxaccel.training.run_log import RunLog, announce_log
from jaxaccel.training.run_setup import set_up_run
from jaxaccel.training.saved_checkpoints import CHECKPOINTS
from jaxaccel.training.signals import StopSignal
from jaxaccel.training.warm_start import read_task


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
      init_from: another run's directory (its best weights count), a file with weights, or the name of a model whose
        weights an installed package brings, which this one starts from.
      source: the Python file that defines the recipe, to be kept with the run.
      trust: execute code that a teacher's run brings along, also where somebody else wrote it.
      loggers: what is told of the metrics besides metrics.jsonl and TensorBoard: a `Logger`, or a function of
        (recipe, directory) that makes one, in the first process alone. One that raises is left out from there on.

    Raises:
      UserError: the recipe asks for what cannot be; the message is one line that says what to do.
      OSError: the disk is full, or fails.
    """
    timed = {"began": time.perf_counter()}
    with contextlib.ExitStack() as leave:
        runtime.setup()
        announce_log()
        leave.enter_context(peers.watch_peers())
        asked = {"run": run, "resume": resume, "overwrite": overwrite, "init_from": init_from}
        check_same_everywhere(flatten_values(to_json(recipe)) | asked)

        directory = Path(run) if run else Path("runs") / recipe.name
        mesh, to_choose = make_mesh(recipe.mesh), recipe.batch_size == "auto" and not resume
        recipe = begin_batch_size(recipe, mesh, directory, resume=resume)
        before = read_facts(directory) if resume else None
        problem = Problem(
            recipe,
            before=before,
            earlier=read_facts(Path(init_from)) if init_from and not resume else None,
            teacher=None if resume else read_task(recipe.distill.teacher, trust=trust),
        )
        setup = set_up_run(problem, mesh, directory, resume=resume, trust=trust)
        start = find_start(setup, init_from)
        if resume and (result := find_finished(setup)):
            return result
        claim = leave.enter_context(
            run_directory.claim_run(directory, recipe, source=source, resume=resume, overwrite=overwrite)
        )
        if resume and (result := find_finished(setup)):  # it had been replaced by one that came to nothing
            return result
        setup, chosen = choose_batch_size(setup, trust=trust) if to_choose else (setup, "")
        recipe, problem = setup.recipe, setup.problem
        if resume:
            compare_data(directory, recipe.data.name, problem.splits.digest)
        progress = open_progress(setup, start, resume=resume)

        plan, first = setup.plan, jax.process_index() == 0
        log = RunLog(directory, steps=plan.steps, epoch=plan.epoch, done=progress.begun, show=first)
        leave.callback(log.close)
        for line in opening_lines(setup, start, progress.begun, init_from, chosen):
            log.say(line)
        feeds = open_feeds(setup, log)
        programs = Programs(setup, feeds)
        done = plan.steps if progress.early else progress.begun
        timetable = plan.timetable(recipe.eval_every, programs.steps_per_call, done)
        timed["compile_seconds"] = programs.compile_first(timetable, log)

        claim.begin(recipe)
        if first:
            problem.facts.write(directory)
        record_data(directory, recipe.data.name, problem.splits.digest)
        log.open(make_loggers(loggers, recipe, directory) if first else ())
        checkpoints = Checkpoints(
            directory / CHECKPOINTS, keep=recipe.keep, metric=recipe.task.metric, better=recipe.task.better
        )
        stop = leave.enter_context(StopSignal())
        meter = make_meter(log, setup, progress.begun)
        fit(programs, progress, timetable, checkpoints, claim, meter, stop)
        return conclude(programs, progress, timetable, checkpoints, meter, source, timed)
