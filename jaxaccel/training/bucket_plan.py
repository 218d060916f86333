"""The plan of a run whose examples vary in length: which lengths there are, and how many examples a step takes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxaccel.data.buckets import Bucketed, BucketedSequential, Turns, divide_by_length, merge_small
from jaxaccel.data.order import Bucket, Form
from jaxaccel.errors import UserError, option
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.run_plan import Timetable, few_steps_note

DEVICES = 8
"""Batches are multiples of this where they are that large, so that as many devices as divide it see the same ones."""


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """How many steps a run takes, from which bucket each, and on how many examples."""

    lengths: np.ndarray
    """(n,) integers: of each example of the split."""
    buckets: tuple[Bucket, ...]
    epochs: float

    @property
    def size(self) -> int:
        """Examples in the data set."""
        return len(self.lengths)

    @functools.cached_property
    def turns(self) -> Turns:
        """Which bucket each step draws from."""
        sizes = tuple(len(bucket.positions) for bucket in self.buckets)
        return Turns(sizes, tuple(bucket.batch_size for bucket in self.buckets))

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return max(1, self._step_at(self.epochs))

    @property
    def forms(self) -> tuple[Form, ...]:
        """Of all batches, the longest examples last."""
        return tuple(bucket.form for bucket in self.buckets)

    @property
    def early_from(self) -> int:
        """The step from which on a run may end early."""
        return 0

    def form(self, step: int) -> Form:
        """Of the batch of `step`."""
        return self.forms[self.turns.find(step).bucket]

    def examples(self, step: int) -> int:
        """How many examples are seen when `step` steps are done."""
        return sum(n * b.batch_size for n, b in zip(self.turns.count(step), self.buckets, strict=True))

    def epoch(self, step: int) -> float:
        """How many times the data set is seen when `step` steps are done."""
        return self.examples(step) / self.size

    def ends(self) -> list[int]:
        """The steps after which an epoch is over, the last one of the run in any case."""
        whole = {self.turns.steps_before(epoch) for epoch in range(1, int(self.epochs) + 1)}
        return sorted(whole | {self.steps})

    def order(self, seed: int) -> Bucketed:
        """Which examples are in the batch of each step, shuffled by `seed`."""
        return Bucketed(seed, self.buckets, self.turns)

    def timetable(self, eval_every: float, per_call: Callable[[Form, int], int], done: int) -> Timetable:
        """The steps after which the run evaluates, and one call for each step that is left after `done`."""
        del per_call  # neighbors differ in their shapes
        count = max(1, math.ceil(self.epochs / eval_every - 0.5))
        inner = {max(1, self._step_at(i * eval_every)) for i in range(1, count)}
        cuts = sorted({cut for cut in inner if cut < self.steps} | {self.steps})
        return Timetable(cuts, [range(step, step + 1) for step in range(done, self.steps)])

    def share_of_padding(self) -> float:
        """The part of all positions of an epoch at which there is no token."""
        filled = sum(len(bucket.positions) * bucket.length for bucket in self.buckets)
        return 1 - sum(np.minimum(self.lengths[b.positions], b.length).sum() for b in self.buckets) / filled

    def note(self, recipe: Recipe) -> str:
        """What to tell of the lengths, and of a run that takes few steps."""
        forms = ", ".join(f"{form.length} ({form.batch_size})" for form in self.forms)
        cut = int((self.lengths > self.forms[-1].length).sum())
        said = (
            f"lengths (examples a batch): {forms}; padding is {self.share_of_padding():.1%} of all positions"
        )
        said += f"; {cut} longer examples are cut" if cut else ""
        few = few_steps_note(recipe, self.size, self.steps, self.forms[-1].batch_size)
        return f"{said}\n{few}" if few else said

    def _step_at(self, epoch: float) -> int:
        whole, part = divmod(epoch, 1)
        start, stop = (self.turns.steps_before(int(whole) + i) for i in (0, 1))
        return start + round(part * (stop - start))


def make_bucket_plan(
    recipe: Recipe, lengths: np.ndarray, bounds: Sequence[int], parts: int = 1
) -> BucketPlan:
    """Divides the examples of the training split into buckets, and says how many of each a step takes.

    Buckets with fewer examples than a batch must have go into the next longer one.

    Args:
      recipe: the experiment.
      lengths: (n,) integers, one an example.
      bounds: to which examples are filled up, rising.
      parts: devices over which a batch is split.

    Raises:
      UserError: there are fewer examples than devices, or the recipe asks for what buckets do not go with.
    """
    if recipe.phases.at or recipe.phases.image_size or recipe.phases.batch_size:
        raise UserError(f"{option('phases')} are for examples of one shape: leave them out")
    least = parts * recipe.optimizer.accumulate
    if len(lengths) < least:
        raise UserError(
            f"{len(lengths)} training examples are fewer than the {least} that a step needs ({parts} devices, "
            f"{recipe.optimizer.accumulate} parts to accumulate): use fewer, or more data"
        )
    groups = merge_small(divide_by_length(lengths, bounds), least)
    sizes = [count_examples(recipe, bound, parts) for bound in bounds]
    buckets = [
        Bucket(bound, min(size, round_down(len(group), least)), group)
        for bound, size, group in zip(bounds, sizes, groups, strict=True)
        if len(group)
    ]
    return BucketPlan(np.asarray(lengths), tuple(buckets), recipe.epochs)


def order_in_buckets(
    recipe: Recipe, lengths: np.ndarray, bounds: Sequence[int], parts: int
) -> BucketedSequential:
    """The batches in which a split of examples of these lengths is evaluated; arguments as of `make_bucket_plan`."""
    groups = zip(bounds, divide_by_length(lengths, bounds), strict=True)
    found = [(bound, group, count_examples(recipe, bound, parts)) for bound, group in groups if len(group)]
    return BucketedSequential(
        tuple(
            Bucket(bound, min(size, -(-len(group) // parts) * parts), group) for bound, group, size in found
        )
    )


def count_examples(recipe: Recipe, length: int, parts: int) -> int:
    """How many examples of one length a step takes.

    As many as asked for, or as their positions fill: a multiple of `DEVICES` where there are so many, and of the parts
    to accumulate, so that it depends on the devices only where they are more.

    Raises:
      UserError: there are more devices than examples.
    """
    accumulate = recipe.optimizer.accumulate
    wanted = recipe.batch_tokens // length if recipe.batch_tokens else recipe.chosen_batch_size
    rounded = round_down(wanted, accumulate)
    if recipe.batch_tokens:
        each = wanted // accumulate
        rounded = accumulate * (
            round_down(each, DEVICES) if each >= DEVICES else 1 << max(each, 1).bit_length() - 1
        )
    found = rounded if rounded % (parts * accumulate) == 0 else round_down(wanted, parts * accumulate)
    if found < 1:
        name = "batch_tokens" if recipe.batch_tokens else "batch_size"
        need = parts * accumulate * (length if recipe.batch_tokens else 1)
        raise UserError(
            f"{option(name)} must be {need} or more: a step has {parts * accumulate} examples at least, one for each "
            f"of {parts} devices and {accumulate} parts to accumulate"
        )
    return found


def round_down(number: int, multiple: int) -> int:
    """The largest multiple that is not above `number`."""
    return number // multiple * multiple
