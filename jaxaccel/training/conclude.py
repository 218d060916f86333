"""The end of a run: the test split, result.json, the best of several replicas, curves, and what is said."""

import time
from pathlib import Path
from typing import Any

import jax

from jaxaccel.core import runtime
from jaxaccel.training import plot, run_directory, saved_checkpoints
from jaxaccel.training.best_replica import keep_best
from jaxaccel.training.checkpoint import Checkpoints, digest_state, place_like
from jaxaccel.training.messages import early_end_text, replicas_text, resume_command, scores_text
from jaxaccel.training.programs import Programs
from jaxaccel.training.progress import Progress
from jaxaccel.training.replicas import Replicas, summarize_replicas
from jaxaccel.training.result import TrainResult
from jaxaccel.training.run_log import Meter
from jaxaccel.training.run_plan import Timetable


def conclude(
    programs: Programs,
    progress: Progress,
    timetable: Timetable,
    checkpoints: Checkpoints,
    meter: Meter,
    source: Path | None,
    timed: dict[str, float],
) -> TrainResult:
    """Tests a run that has come to its end, and writes and says what came of it, as of one that was stopped.

    Args:
      programs: of the run.
      progress: where it is.
      timetable: which calls it had left when it began.
      checkpoints: of the run; they are closed.
      meter: of the steps; its log tells the rest.
      source: the Python file that defines the recipe.
      timed: ``began``, by `time.perf_counter`, and ``compile_seconds``.
    """
    setup, state, log = programs.setup, progress.state, meter.log
    recipe, task, directory, plan = setup.recipe, setup.recipe.task, setup.directory, setup.plan
    log.close()
    checkpoints.wait()
    at, scores = progress.done, summarize_replicas(progress.rows, task.headline)
    best_step = saved_checkpoints.find_best(checkpoints.directory, task.metric, task.better)
    early = progress.early and at < plan.steps
    over = early or at == plan.steps
    test = _test(programs, progress) if over and setup.problem.splits.test else {}
    if test:
        log.say(f"test split, best checkpoint (step {test['test_step']}): {scores_text(test['test'])}")
    checkpoints.close()
    compiled = programs.compile_call(timetable.calls[0]) if timetable.calls else None
    summary = {
        "recipe": recipe.name, "seed": recipe.seed, "steps": at, "epochs": plan.epoch(at), "eval": scores,
        "eval_step": progress.scored, "best_step": best_step, **test, "finished": over, "stopped_early": early,
        "examples_per_second": meter.examples_per_second,
        "seconds": time.perf_counter() - timed["began"], "compile_seconds": timed["compile_seconds"],
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)) // setup.trainer.count,
        "flops_per_step": setup.flops_per_step, "peak_bytes": runtime.peak_bytes(compiled),
        "feed": "resident" if programs.feeds.resident else "stream",
        "steps_per_call": len(timetable.calls[0]) if timetable.calls else 0,
        "mesh": dict(setup.mesh.shape), "device_kind": setup.mesh.devices.flat[0].device_kind,
        "device_count": setup.mesh.size, "process_count": jax.process_count(),
        "state_sha256": digest_state(state) if jax.process_count() == 1 else None, "versions": runtime.versions(),
    }  # fmt: skip
    show = jax.process_index() == 0
    if isinstance(setup.trainer, Replicas) and progress.scored == at and progress.rows[0]:
        summary["replicas"] = setup.trainer.table(progress.rows)
        best = keep_best(directory, recipe, source, setup.trainer, state, progress.rows)
        if show:
            setup.problem.facts.write(directory / "best")
        log.say(replicas_text(summary["replicas"], progress.rows, task.metric, best))
    if show:
        run_directory.write_json(directory / "result.json", summary)
        plot.draw(directory, f"{recipe.name}: {scores_text(scores)}", task.headline)
    if early:
        log.say(early_end_text(recipe, at, plan.steps, best_step))
    log.say(f"{scores_text(scores)} after {summary['seconds']:.0f} s; see {directory}/curves.png" if over
            else f"stopped at step {at} of {plan.steps} and saved; go on with: {resume_command()}")  # fmt: skip
    return TrainResult(directory, summary, setup.trainer, state, setup.problem.facts)


def _test(programs: Programs, progress: Progress) -> dict[str, Any]:
    """The metrics of the best checkpoint on the test split, for result.json."""
    task, state = programs.setup.recipe.task, progress.state
    step, weights = saved_checkpoints.read_weights(programs.setup.directory, task.metric, task.better)
    best = [
        place_like(x, weights, root)
        for x, root in ((state.weights(), "params"), (state.model_state, "model_state"))
    ]
    return {"test": summarize_replicas(programs.evaluate(*best, which=1), task.headline), "test_step": step}
