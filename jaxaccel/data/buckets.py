"""Examples of like length in batches of their own, so that little of a batch is padding.

A bucket is an endless shuffle of its own, and which bucket a step draws from is a permutation with the number of the
epoch as its key. So the batch of any step is computed without iterating, here as for examples of one shape: the same
on any number of devices, and nothing is dropped. Each bucket is a shape, and each shape a program.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxaccel.data.examples import Item
from jaxaccel.data.order import Bucket, Order, Sequential, Shuffled, permutation

MAX_BUCKETS = 6
"""How many lengths are chosen at most: each is a program to compile."""
MULTIPLE = 4
"""Lengths that are chosen are multiples of this, which fills vector registers."""
_TURNS = 0x7475726E
"""Keys the order of the buckets: part of what a run means, never to be changed."""


def choose_bounds(lengths: np.ndarray, most: int = MAX_BUCKETS, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """Chooses the lengths of buckets by which the least of all batches is padding.

    It finds the best choice there is, by dynamic programming over the lengths that occur, rounded up to a multiple.

    Args:
      lengths: (n,) integers, one an example.
      most: how many bounds to choose at most.
      multiple: what bounds are multiples of.
    """
    rounded = np.maximum(-(-np.asarray(lengths) // multiple), 1) * multiple
    bounds, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: positions of the examples up to bound j, if bounds[j] is chosen and so many before it.
    cost = (bounds * before[1:]).astype(np.float64)
    chosen = [[j] for j in range(len(bounds))]
    for _ in range(min(most, len(bounds)) - 1):
        with_one_more, choices = cost.copy(), list(chosen)
        for j in range(1, len(bounds)):
            whole = cost[:j] + bounds[j] * (before[j + 1] - before[1 : j + 1])
            i = int(whole.argmin())
            if whole[i] < with_one_more[j]:
                with_one_more[j], choices[j] = whole[i], [*chosen[i], j]
        cost, chosen = with_one_more, choices
    return tuple(int(bounds[j]) for j in chosen[-1])


def divide_by_length(lengths: np.ndarray, bounds: Sequence[int]) -> list[np.ndarray]:
    """Which examples belong to each of the rising `bounds`: the first that they fit; what is longer to the last."""
    which = np.minimum(np.searchsorted(np.asarray(bounds), lengths), len(bounds) - 1)
    return [np.flatnonzero(which == b).astype(np.int32) for b in range(len(bounds))]


def merge_small(parts: Sequence[np.ndarray], least: int) -> list[np.ndarray]:
    """`parts` without those of fewer than `least` examples: they go into the next longer one that has as many."""
    merged: list[np.ndarray] = []
    waiting = np.zeros(0, np.int32)
    for part in parts:
        waiting = np.sort(np.concatenate([waiting, part]))
        full = len(waiting) >= least
        merged.append(waiting if full else waiting[:0])
        waiting = waiting[:0] if full else waiting
    if len(waiting):  # the longest ones are few: the next shorter bucket takes on the length that they need
        longest = max(b for b, part in enumerate(parts) if len(part))
        last = max((b for b, part in enumerate(merged) if len(part)), default=longest)
        both = np.sort(np.concatenate([merged[last], waiting]))
        merged[last] = merged[last][:0]
        merged[longest] = both
    return merged


class Turn(NamedTuple):
    """What a step draws."""

    bucket: int
    draw: int
    """How often it was drawn from before."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """Which bucket each step draws from. It depends on the sizes alone, so that all seeds have the same shapes."""

    sizes: tuple[int, ...]
    """Examples in each bucket."""
    batch_sizes: tuple[int, ...]
    """Examples in a batch of each; no more than there are."""

    def steps_before(self, epoch: int) -> int:
        """The steps after which all examples were seen `epoch` times, to within one batch a bucket."""
        return sum(self._draws(epoch))

    def find(self, step: int) -> Turn:
        """What `step` draws."""
        epoch = self._epoch_of(step)
        i = step - self.steps_before(epoch)
        order, ranks = _order_epoch(self, epoch)
        return Turn(int(order[i]), self._draws(epoch)[order[i]] + int(ranks[i]))

    def count(self, step: int) -> list[int]:
        """How often each bucket was drawn from when `step` steps are done."""
        epoch = self._epoch_of(step)
        order, _ = _order_epoch(self, epoch)
        seen = np.bincount(order[: step - self.steps_before(epoch)], minlength=len(self.sizes))
        return [before + int(n) for before, n in zip(self._draws(epoch), seen, strict=True)]

    def _epoch_of(self, step: int) -> int:
        low, high = 0, 1
        while self.steps_before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.steps_before(middle) <= step else (low, middle)
        return low

    def _draws(self, epoch: int) -> list[int]:
        return [epoch * n // size for n, size in zip(self.sizes, self.batch_sizes, strict=True)]


@functools.lru_cache(maxsize=8)
def _order_epoch(turns: Turns, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each step of an epoch, and how many steps of the epoch drew from it before."""
    counts = np.subtract(turns._draws(epoch + 1), turns._draws(epoch))
    sorted_turns = np.repeat(np.arange(len(counts)), counts)
    sorted_ranks = np.concatenate([np.arange(n) for n in counts])
    mixed = permutation(_TURNS, epoch, len(sorted_turns))
    order = sorted_turns[mixed]
    ranks = np.empty_like(order)
    for bucket in range(len(counts)):
        ranks[order == bucket] = sorted_ranks[sorted_turns == bucket]
    return order, ranks


@dataclasses.dataclass(frozen=True)
class Bucketed(Order):
    """Batches for training out of several buckets: within each the examples over and over, newly shuffled each time."""

    seed: int
    groups: tuple[Bucket, ...]
    turns: Turns

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What the batches are drawn from."""
        return self.groups

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of all buckets."""
        return tuple({bucket.batch_size for bucket in self.buckets})

    def length(self, step: int) -> int:
        """The length to which the examples of `step` are filled up."""
        return self.buckets[self.turns.find(step).bucket].length

    def __call__(self, step: int) -> Item:
        """``index`` (B,) int32 into the split, ``row`` (B,) int32 within the bucket, ``epoch`` and ``mask``."""
        number, draw = self.turns.find(step)
        bucket = self.buckets[number]
        item = Shuffled(self.seed, len(bucket.positions), bucket.batch_size, stream=1 + number)(draw)
        return item | {"index": bucket.positions[item["index"]], "row": item["index"]}


@dataclasses.dataclass(frozen=True)
class BucketedSequential(Order):
    """Batches for evaluation: one bucket after the other, each example once; last batches are filled up, mask 0."""

    groups: tuple[Bucket, ...]

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What the batches are drawn from."""
        return self.groups

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of all buckets."""
        return tuple({bucket.batch_size for bucket in self.buckets})

    def __len__(self) -> int:
        return self._ends[-1]

    def length(self, i: int) -> int:
        """The length to which the examples of batch `i` are filled up."""
        return self._find(i)[0].length

    def __call__(self, i: int) -> Item:
        """As `Bucketed`, ``epoch`` 0, and ``mask`` 0 where the bucket's example 0 fills the batch up."""
        bucket, part = self._find(i)
        item = Sequential(len(bucket.positions), bucket.batch_size)(part)
        return item | {"index": bucket.positions[item["index"]], "row": item["index"]}

    @functools.cached_property
    def _ends(self) -> list[int]:
        batches = [-(-len(bucket.positions) // bucket.batch_size) for bucket in self.buckets]
        return list(itertools.accumulate(batches))

    def _find(self, i: int) -> tuple[Bucket, int]:
        number = next(b for b, end in enumerate(self._ends) if i < end)
        return self.buckets[number], i - (self._ends[number - 1] if number else 0)
