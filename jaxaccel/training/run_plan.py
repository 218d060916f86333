"""The phases of a run, when it evaluates, and how many steps one call of the device does."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from jaxaccel.data.order import Form, Order, Phase, Shuffled
from jaxaccel.errors import UserError, option
from jaxaccel.training.recipe import Recipe

MIN_STEPS = 10
"""A run of fewer is told: it learns next to nothing."""


class Timetable(NamedTuple):
    """What a run does when."""

    cuts: list[int]
    """Steps after which it evaluates and saves."""
    calls: list[range]
    """The steps of each call of the devices that is left."""


class Plan(Protocol):
    """How many steps a run takes, and on how many examples of which form each.

    `PhasePlan` is that of examples of one shape, `bucket_plan.BucketPlan` that of examples that vary in length.
    """

    @property
    def size(self) -> int:
        """Examples in the data set."""
        ...

    @property
    def steps(self) -> int:
        """Of the whole run."""
        ...

    @property
    def forms(self) -> tuple[Form, ...]:
        """Of all batches; the last one is the largest, or that of the end of the run."""
        ...

    @property
    def early_from(self) -> int:
        """The step from which on a run may end early."""
        ...

    def form(self, step: int, /) -> Form:
        """Of the batch of `step`."""
        ...

    def examples(self, step: int, /) -> int:
        """How many examples are seen when `step` steps are done."""
        ...

    def epoch(self, step: int, /) -> float:
        """How many times the data set is seen when `step` steps are done."""
        ...

    def ends(self) -> list[int]:
        """The steps after which an epoch is over, the last one of the run in any case."""
        ...

    def order(self, seed: int, /) -> Order:
        """Which examples are in the batch of each step, shuffled by `seed`."""
        ...

    def timetable(self, eval_every: float, per_call: Callable[[Form, int], int], done: int) -> Timetable:
        """The steps after which the run evaluates, and the steps of each call that is left after `done` steps.

        Args:
          eval_every: epochs between evaluations.
          per_call: (form, steps between evaluations) -> steps a call.
          done: steps.
        """
        ...

    def note(self, recipe: Recipe, /) -> str:
        """What to tell of the plan; empty where there is nothing."""
        ...


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """The plan of a run on examples of one shape: phases, each with batches of one size and images of one size."""

    size: int
    """Examples in the data set."""
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.phases[-1].stop

    @property
    def forms(self) -> tuple[Form, ...]:
        """Of the phases, in their order."""
        return tuple(dict.fromkeys(phase.form for phase in reversed(self.phases)))[::-1]

    @property
    def early_from(self) -> int:
        """A run of several phases ends in its last one."""
        return self.phases[-1].start + 1

    def form(self, step: int) -> Form:
        """Of the batch of `step`."""
        return self.phase(step).form

    def order(self, seed: int) -> Order:
        """Which examples are in the batch of each step, shuffled by `seed`."""
        return Shuffled.phased(seed, self.size, self.phases)

    def timetable(self, eval_every: float, per_call: Callable[[Form, int], int], done: int) -> Timetable:
        """As of `Plan`; each phase ends with an evaluation, too."""
        all_cuts: list[int] = []
        all_calls: list[range] = []
        for phase in self.phases:
            interval = max(1, round(eval_every * self.size / phase.batch_size))
            inner = list_cuts(phase.stop - phase.start, interval)
            fused = per_call(phase.form, interval)
            all_cuts += [phase.start + cut for cut in inner]
            all_calls += [
                range(phase.start + call.start, phase.start + call.stop)
                for call in cut_into_calls(inner, fused, max(0, done - phase.start))
            ]
        return Timetable(all_cuts, all_calls)

    def phase(self, step: int) -> Phase:
        """The phase that `step` belongs to; steps behind the end belong to the last one."""
        return next((phase for phase in self.phases if step < phase.stop), self.phases[-1])

    def examples(self, step: int) -> int:
        """How many examples are seen when `step` steps are done."""
        phase = self.phase(step)
        return phase.before + (step - phase.start) * phase.batch_size

    def epoch(self, step: int) -> float:
        """How many times the data set is seen when `step` steps are done."""
        return self.examples(step) / self.size

    def ends(self) -> list[int]:
        """The steps after which an epoch is over, the last one of the run in any case."""
        over = {self.steps}
        for epoch in range(1, int(self.epoch(self.steps)) + 1):
            phase = next(
                p for p in self.phases if self.examples(p.stop - 1) + p.batch_size >= epoch * self.size
            )
            over.add(phase.start - (phase.before - epoch * self.size) // phase.batch_size)
        return sorted(over)

    def note(self, recipe: Recipe) -> str:
        """What to tell of a run that takes few steps, or smaller batches than asked for; empty for others."""
        wanted = recipe.phases.batch_size or (recipe.chosen_batch_size,)
        smaller = [p.batch_size for p in self.phases if p.batch_size < max(wanted)]
        if self.size < max(wanted) and smaller:
            return (
                f"{self.size} training examples are fewer than a batch of {max(wanted)}: steps take {max(smaller)} "
                f"at a time, {self.steps} steps in all"
            )
        return few_steps_note(recipe, self.size, self.steps, self.phases[-1].batch_size)


def few_steps_note(recipe: Recipe, size: int, steps: int, batch_size: int) -> str:
    """What to tell of a run that takes few steps; empty for others."""
    if steps >= MIN_STEPS:
        return ""
    return (
        f"{recipe.epochs:g} epochs of {size} training examples are {steps} step{'s' * (steps > 1)} of {batch_size}: "
        "more epochs or a smaller batch make more of them"
    )


def check_batches(recipe: Recipe, devices: int) -> None:
    """Checks that every batch divides over `devices` and the parts to accumulate.

    Raises:
      UserError: one does not.
    """
    parts = devices * recipe.optimizer.accumulate
    for batch_size in (recipe.chosen_batch_size, *recipe.phases.batch_size):
        if batch_size < 1 or batch_size % parts:
            raise UserError(
                f"{option('batch_size')} must be a positive multiple of {parts} ({devices} devices along data and "
                f"fsdp, {recipe.optimizer.accumulate} parts to accumulate), got {batch_size}"
            )


def make_plan(recipe: Recipe, size: int, parts: int = 1) -> PhasePlan:
    """The phases of `recipe` on a data set of `size` examples.

    A batch holds no example twice: one larger than the data set becomes the largest that fits and divides over `parts`
    devices and the parts to accumulate, so that an epoch is a pass over the data here, too.

    Raises:
      UserError: the boundaries do not increase from 0 to 1, or the lists are not one longer than they.
    """
    wanted = recipe.phases
    edges = [0.0, *wanted.at, 1.0]
    if any(before >= after for before, after in itertools.pairwise(edges)):
        raise UserError(f"{option('phases.at')} must increase between 0 and 1, got {wanted.at}")
    lists = {"image_size": wanted.image_size or (0,) * (len(wanted.at) + 1),
             "batch_size": wanted.batch_size or (recipe.chosen_batch_size,) * (len(wanted.at) + 1)}  # fmt: skip
    for name, values in lists.items():
        if len(values) != len(wanted.at) + 1:
            raise UserError(
                f"{option(f'phases.{name}')} needs {len(wanted.at) + 1} numbers, one a phase, got {len(values)}"
            )
    multiple = parts * recipe.optimizer.accumulate
    largest = max(multiple, size // multiple * multiple)
    phases: list[Phase] = []
    start = before = 0
    for stop, batch_size, image_size in zip(edges[1:], lists["batch_size"], lists["image_size"], strict=True):
        batch_size = min(batch_size, largest)
        steps = max(1, round((stop * recipe.epochs * size - before) / batch_size))
        phases.append(Phase(start, start + steps, before, batch_size, image_size))
        start, before = start + steps, before + steps * batch_size
    return PhasePlan(size, tuple(phases))


def should_stop_early(
    recipe: Recipe, plan: Plan, step: int, evaluations: Sequence[Sequence[Mapping[str, float]]]
) -> bool:
    """Whether the run ends after `step` steps, because its metric has got no better for `patience` evaluations.

    It follows from the metrics alone, so that a resumed run decides as one that was never stopped. Several replicas
    end together, once none of them gets better; a run of several phases ends in its last one.

    Args:
      recipe: of the run.
      plan: of the run.
      step: steps done.
      evaluations: the metrics of each evaluation so far, a row a replica.
    """
    if not recipe.patience or step < plan.early_from:
        return False
    replicas = zip(*evaluations, strict=True)
    waited = [len(rows) - 1 - recipe.task.headline.best(rows) for rows in replicas]
    return bool(waited) and min(waited) >= recipe.patience


def list_cuts(steps: int, interval: int) -> list[int]:
    """The steps after which the run evaluates and saves: each `interval`, and the end."""
    return [*range(interval, steps - interval // 2, interval), steps]


def cut_into_calls(cuts: Sequence[int], per_call: int, done: int = 0) -> list[range]:
    """The steps of each call that is left after `done` steps: `per_call` of them, fewer before a cut.

    Calls are counted from the start of the run, so that a resumed run repeats the very same compiled calls; only
    where it was stopped with another `per_call` is the first one cut short.
    """
    return [
        range(max(start, done), min(start + per_call, cut))
        for before, cut in itertools.pairwise([0, *cuts])
        for start in range(before, cut, per_call)
        if min(start + per_call, cut) > done
    ]


def choose_steps_per_call(wanted: int, flops: float, boundary: int, steps: int, platform: str) -> int:
    """How many of `steps` steps to fuse: enough to hide the dispatch, a divisor of `boundary` where one is near."""
    if not wanted:
        # On the CPU steps are unrolled (see step.loop), so each one more costs a second or two to compile, which
        # only a thousand calls bring back; and calls above some milliseconds gain nothing: about what one core
        # computes in 5 ms.
        most = min(8, 1 + steps // 1000, int(1 + 1e9 // max(flops, 1)))
        wanted = most if platform == "cpu" else 32
    divisors = [k for k in range(1, min(wanted, boundary) + 1) if boundary % k == 0]
    return max(divisors) if 2 * max(divisors) > wanted else min(wanted, boundary)


def count_step_flops(step: Callable, state: Any, batch: Any) -> float:
    """Floating-point operations of one step, counted by XLA before it optimizes; 0 where it does not count them.

    Raises:
      UserError: the step cannot be traced.
    """
    try:
        lowered = jax.jit(step).lower(state, batch)
    except UserError:
        raise
    except (TypeError, ValueError) as error:  # an optimizer that wants more than gradients, say
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the training step cannot be traced: {reason}") from error
    try:
        cost = lowered.cost_analysis()
    except jax.errors.JaxRuntimeError:  # for devices that are not attached
        cost = None
    return float(cost.get("flops", 0.0)) if cost else 0.0
