"""The compiled programs of a run, on the mesh and on the data that they are fed."""

import dataclasses
import functools
import time
from typing import Any

import jax

from jaxaccel.core.platform import platform_of
from jaxaccel.data.order import Phase
from jaxaccel.distributed import batch_sharding, placed
from jaxaccel.optim.averaging import make_reestimator
from jaxaccel.tasks.metrics import Mean, Scores, add
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
        evaluations = fuse_evaluations(setup.trainer, self._constrain if setup.split else lambda batch: batch)
        self._evaluate = jax.jit(evaluations, out_shardings=setup.trainer.reported(setup.mesh))
        self._reestimate = make_reestimator(
            lambda weights, old, fed: setup.trainer.observe(weights, old, self._constrain(gather_batch(*fed)))
        )

    def steps_per_call(self, phase: Phase, interval: int) -> int:
        """How many steps of `phase` one call does, where `interval` of them lie between evaluations."""
        if not self.feeds.resident:
            return 1
        recipe, flops = self.setup.recipe, self.setup.flops[phase]
        platform = platform_of(self.setup.mesh)
        return run_plan.choose_steps_per_call(
            recipe.steps_per_call, flops, interval, self.setup.plan.steps, platform
        )

    def compile_call(self, call: range) -> jax.stages.Compiled:
        """Compiles the program of these steps, once for each phase and length."""
        return self._step(self.setup.plan.phase(call.start), len(call))

    def compile_first(self, timetable: Timetable) -> float:
        """Compiles the program of the first call that is left, if there is one; gives the seconds that it took."""
        start = time.perf_counter()
        if timetable.calls:
            self.compile_call(timetable.calls[0])
        return time.perf_counter() - start

    def compile_evaluation(self, which: int = 0) -> jax.stages.Compiled:
        """Compiles the program that evaluates one batch of a split that is held out, as `evaluate` numbers them."""
        setup, feed = self.setup, self.feeds.held_out[which]
        state = placed(setup.state, setup.shardings)
        item = feed.item_shape(setup.problem.batch_shape(setup.recipe.chosen_batch_size), 1)
        with jax.set_mesh(setup.mesh):
            return self._evaluate.lower(state.params, state.model_state, feed.arrays, item).compile()

    def run(self, call: range, state: TrainState, item: PyTree) -> tuple[TrainState, StepMetrics]:
        """Makes the steps of a call; `state` is given up."""
        return self.compile_call(call)(state, self.feeds.train.arrays, item)

    def evaluate(self, weights: PyTree, model_state: PyTree, which: int = 0) -> list[Scores]:
        """Computes the metrics of a whole split that is held out, a row a model.

        Args:
          weights: parameters.
          model_state: statistics.
          which: 0 for the split that decides while training, 1 for the test split.
        """
        feed, ahead = self.feeds.held_out[which], max_calls_ahead(self.setup.mesh)
        sums: list[dict[str, Mean]] = []
        with jax.set_mesh(self.setup.mesh):
            for item in feed.items([range(i, i + 1) for i in range(self.feeds.lengths[which])]):
                sums.append(self._evaluate(weights, model_state, feed.arrays, item))
                jax.block_until_ready(sums[max(0, len(sums) - 1 - ahead)])
        return self.setup.trainer.scores(jax.device_get(add(sums)))

    def settle(self, state: TrainState) -> TrainState:
        """Estimates the statistics of averaged parameters anew, where the recipe asks for it."""
        count = self.setup.recipe.optimizer.reestimate
        if not count or state.average is None:
            return state
        train = self.feeds.train
        items = train.items([range(i, i + 1) for i in range(count)])
        batches = ((train.arrays, jax.tree.map(lambda x: x[0], item)) for item in items)
        with jax.set_mesh(self.setup.mesh):
            statistics = self._reestimate(state.weights(), state.model_state, batches)
        placed_there = jax.device_put(statistics, self.setup.shardings.model_state)
        return dataclasses.replace(state, model_state=placed_there)

    def _constrain(self, batch: Batch) -> Batch:
        return jax.lax.with_sharding_constraint(batch, batch_sharding(self.setup.mesh))

    def _compile_step(self, phase: Phase, length: int) -> jax.stages.Compiled:
        setup, feed = self.setup, self.feeds.train
        trainer, mesh = setup.trainers[phase.image_size], setup.mesh
        call = jax.jit(
            fuse_steps(trainer, self._constrain),
            donate_argnums=0,
            out_shardings=(setup.shardings, trainer.reported(mesh)),
        )
        item = feed.item_shape(setup.batch_shape(phase), length)
        with jax.set_mesh(mesh):
            lowered = call.lower(placed(setup.state, setup.shardings), feed.arrays, item)
        return lowered.compile(trainer.compiler_options(setup.flops[phase], platform_of(mesh)))


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
