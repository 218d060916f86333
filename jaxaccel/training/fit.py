"""The loop over the calls of the devices: what happens in each step of a run, and after some of them."""

import dataclasses

import jax.numpy as jnp

from jaxaccel.errors import UserError, option
from jaxaccel.training import run_plan
from jaxaccel.training.checkpoint import Checkpoints
from jaxaccel.training.programs import Programs
from jaxaccel.training.progress import Progress
from jaxaccel.training.replicas import summarize_replicas
from jaxaccel.training.run_directory import Claim
from jaxaccel.training.run_log import Meter
from jaxaccel.training.run_plan import Timetable
from jaxaccel.training.signals import StopSignal


def fit(
    programs: Programs,
    progress: Progress,
    timetable: Timetable,
    checkpoints: Checkpoints,
    claim: Claim,
    meter: Meter,
    stop: StopSignal,
) -> None:
    """Trains until the last step, an early stop, a signal, or a step that is not finite; `progress` says how far.

    Args:
      programs: of the run.
      progress: where the run is; it is changed.
      timetable: the calls that are left, and when the run evaluates and saves.
      checkpoints: of the run.
      claim: on its directory; what it replaces is deleted at the first checkpoint.
      meter: takes in the metrics of steps; its log those of evaluations.
      stop: says after each call whether a signal has come.

    Raises:
      UserError: a step is not finite and the recipe stops there. The state before it is saved.
    """
    items = programs.feeds.train.items(timetable.calls)
    for ordinal, (call, item) in enumerate(zip(timetable.calls, items, strict=True)):
        with meter.paused():  # where it is still to be compiled
            programs.compile_call(call)
        progress.state, metrics = programs.run(call, progress.state, item)
        meter.push(call, metrics)
        stopping, cut = stop.asked(ordinal), call.stop in timetable.cuts
        if cut or stopping:
            meter.flush()
        if meter.failed is not None:
            raise _not_finite(meter.failed, programs, progress, checkpoints)
        if cut:
            with meter.paused():
                progress.state = programs.settle(progress.state)
                evaluate_and_save(programs, progress, checkpoints, meter, call.stop)
            claim.settle()
        elif stopping:
            checkpoints.save(call.stop, progress.state)
        if stopping or progress.early:
            return
    if not timetable.calls:  # killed after its last checkpoint, before it wrote its result
        _score(programs, progress, progress.done)


def evaluate_and_save(
    programs: Programs, progress: Progress, checkpoints: Checkpoints, meter: Meter, step: int
) -> None:
    """Evaluates the state after `step` steps, saves it, and decides whether the run ends early."""
    recipe, plan = programs.setup.recipe, programs.setup.plan
    _score(programs, progress, step)
    recipe.task.headline.check(type(recipe.task).__name__, progress.rows[0])
    scores = summarize_replicas(progress.rows, recipe.task.headline)
    meter.log.evaluated(step, scores, progress.rows)
    checkpoints.save(step, progress.state, scores)
    progress.evaluations.append(progress.rows)
    progress.early = run_plan.should_stop_early(recipe, plan, step, progress.evaluations)


def _score(programs: Programs, progress: Progress, step: int) -> None:
    state = progress.state
    progress.rows, progress.scored = programs.evaluate(state.weights(), state.model_state), step


def _not_finite(step: int, programs: Programs, progress: Progress, checkpoints: Checkpoints) -> UserError:
    """Saves the state before `step`, which is not finite, and says how to go on."""
    halted = jnp.zeros_like(progress.state.halted)
    checkpoints.save(progress.done, dataclasses.replace(progress.state, halted=halted))
    checkpoints.close()
    return UserError(
        f"loss or gradient is not finite at step {step}: the state before it is saved in "
        f"{programs.setup.directory}; go on with {option('resume', True)} {option('non_finite', 'skip')}, or start "
        f"again with a lower {option('optimizer.learning_rate')} or with {option('optimizer.clip_norm')}"
    )
