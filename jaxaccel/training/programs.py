"""The compiled programs of a run, on the mesh and on the data that they are fed."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxaccel.core.platform import platform_of
from jaxaccel.data.order import Form
from jaxaccel.distributed import batch_sharding, placed
from jaxaccel.optim.averaging import make_reestimator
from jaxaccel.tasks.metrics import Scores, add
from jaxaccel.tasks.rows import Evaluated
from jaxaccel.tasks.task import Batch
from jaxaccel.training import run_plan
from jaxaccel.training.feed import Feeds
from jaxaccel.training.fused_steps import fuse_evaluations, fuse_steps, gather_batch
from jaxaccel.training.run_log import Meter, RunLog, max_calls_ahead
from jaxaccel.training.run_plan import Timetable
from jaxaccel.training.run_setup import RunSetup
from jaxaccel.training.state import StepMetrics, TrainState

PyTree = Any


class Programs:
    """What the devices execute: steps, evaluations, and looks at batches that estimate statistics anew.

    All are compiled with the mesh in context, by which loops over layers keep the examples split.
    """

    def __init__(self, setup: RunSetup, feeds: Feeds) -> None:
        self.setup, self.feeds = setup, feeds
        self._step = functools.cache(self._compile_step)
        self._evaluation = functools.cache(self._compile_evaluation)
        evaluations = fuse_evaluations(setup.trainer, self._constrain if setup.split else lambda batch: batch)
        self._evaluate = jax.jit(evaluations, out_shardings=setup.trainer.reported(setup.mesh))
        self._reestimate = make_reestimator(
            lambda weights, old, fed: setup.trainer.observe(weights, old, self._constrain(gather_batch(*fed)))
        )

    def steps_per_call(self, form: Form, interval: int) -> int:
        """How many steps on such batches one call does, where `interval` of them lie between evaluations."""
        if not self.feeds.resident:
            return 1
        recipe, flops = self.setup.recipe, self.setup.flops[form]
        platform = platform_of(self.setup.mesh)
        return run_plan.choose_steps_per_call(
            recipe.steps_per_call, flops, interval, self.setup.plan.steps, platform
        )

    def compile_call(self, call: range) -> jax.stages.Compiled:
        """Compiles the program of these steps, once for each form of their batches and number of steps."""
        return self._step(self.setup.plan.form(call.start), len(call))

    def compile_first(self, timetable: Timetable, log: RunLog) -> float:
        """Compiles what the run needs first; gives the seconds that it took.

        That is the program of the first call that is left, if there is one. Where examples vary in length it is all
        programs that the run will need, which is told: none is compiled later.
        """
        start = time.perf_counter()
        if not self.setup.problem.task.bounds:
            if timetable.calls:
                self.compile_call(timetable.calls[0])
            return time.perf_counter() - start
        steps = [(self._step, (form, 1)) for form in self.setup.plan.forms if timetable.calls]
        evaluations = [
            (self._evaluation, (which, bucket.form))
            for which, feed in enumerate(self.feeds.held_out)
            for bucket in feed.order.buckets
        ]
        said = f"compiling {len(steps)} programs of steps and {len(evaluations)} of evaluations, one for each length"
        log.say(said)
        with log.working("compiling", len(steps) + len(evaluations)) as advance:
            for compile_one, arguments in (*steps, *evaluations):
                compile_one(*arguments)
                advance(1)
        return time.perf_counter() - start

    def compile_evaluation(self, which: int = 0) -> jax.stages.Compiled:
        """Compiles the program that evaluates one batch of a split that is held out, as `evaluate` numbers them."""
        return self._evaluation(which, Form(self.setup.recipe.chosen_batch_size))

    def run(self, call: range, state: TrainState, item: PyTree) -> tuple[TrainState, StepMetrics]:
        """Makes the steps of a call; `state` is given up."""
        length = self.setup.plan.form(call.start).length
        return self.compile_call(call)(state, self.feeds.train.arrays_of(length), item)

    def evaluate(self, weights: PyTree, model_state: PyTree, which: int = 0) -> list[Scores]:
        """Computes the metrics of a whole split that is held out, a row a model.

        Args:
          weights: parameters.
          model_state: statistics.
          which: 0 for the split that decides while training, 1 for the test split.
        """
        feed, ahead = self.feeds.held_out[which], max_calls_ahead(self.setup.mesh)
        found: list[Evaluated] = []
        with jax.set_mesh(self.setup.mesh):
            for i, item in enumerate(feed.items([range(i, i + 1) for i in range(self.feeds.lengths[which])])):
                evaluate = self._evaluate_batch(which, feed.order.length(i))
                found.append(evaluate(weights, model_state, feed.arrays_of(feed.order.length(i)), item))
                jax.block_until_ready(found[max(0, len(found) - 1 - ahead)])
        source = self.setup.problem.splits.held_out[which]
        means, rows = jax.device_get((add(one.means for one in found), [one.rows for one in found]))
        return self.setup.trainer.scores(means, rows, source)

    def _evaluate_batch(self, which: int, length: int) -> Callable[..., Evaluated]:
        """What evaluates a batch of that length: a program that is there already where lengths vary."""
        if not length:
            return self._evaluate
        bucket = next(b for b in self.feeds.held_out[which].order.buckets if b.length == length)
        return self._evaluation(which, bucket.form)

    def settle(self, state: TrainState) -> TrainState:
        """Estimates the statistics of averaged parameters anew, where the recipe asks for it."""
        count = self.setup.recipe.optimizer.reestimate
        if not count or state.average is None:
            return state
        train = self.feeds.train
        calls = [range(i, i + 1) for i in range(count)]
        pairs = zip(calls, train.items(calls), strict=True)
        batches = (
            (train.arrays_of(train.order.length(call.start)), jax.tree.map(lambda x: x[0], item))
            for call, item in pairs
        )
        with jax.set_mesh(self.setup.mesh):
            statistics = self._reestimate(state.weights(), state.model_state, batches)
        placed_there = jax.device_put(statistics, self.setup.shardings.model_state)
        return dataclasses.replace(state, model_state=placed_there)

    def _constrain(self, batch: Batch) -> Batch:
        return jax.lax.with_sharding_constraint(batch, batch_sharding(self.setup.mesh))

    def _compile_evaluation(self, which: int, form: Form) -> jax.stages.Compiled:
        setup, feed = self.setup, self.feeds.held_out[which]
        state = placed(setup.state, setup.shardings)
        batch = setup.problem.batch_shape(form.batch_size, form.length)
        item, arrays = feed.item_shape(batch, 1, form.length), feed.arrays_of(form.length)
        with jax.set_mesh(setup.mesh):
            return self._evaluate.lower(state.params, state.model_state, arrays, item).compile()

    def _compile_step(self, form: Form, steps: int) -> jax.stages.Compiled:
        setup, feed = self.setup, self.feeds.train
        trainer, mesh = setup.trainers[form.image_size], setup.mesh
        call = jax.jit(
            fuse_steps(trainer, self._constrain),
            donate_argnums=0,
            out_shardings=(setup.shardings, trainer.reported(mesh)),
        )
        item = feed.item_shape(setup.batch_shape(form), steps, form.length)
        with jax.set_mesh(mesh):
            lowered = call.lower(placed(setup.state, setup.shardings), feed.arrays_of(form.length), item)
        return lowered.compile(trainer.compiler_options(setup.flops[form], platform_of(mesh)))


def make_meter(log: RunLog, setup: RunSetup, done: int) -> Meter:
    """Makes what collects the metrics of a run's steps without making the devices wait."""
    return Meter(
        log,
        examples=lambda step: setup.plan.examples(step) * setup.trainer.count,
        done=done,
        every=max(1, setup.plan.steps // 400),
        stops=setup.recipe.non_finite == "stop",
        lag=max_calls_ahead(setup.mesh),
    )
