"""Which examples make up batch k: a pure function of (seed, k), computed without iterating.

So a run resumes at any step, and feeds the same batches on any number of devices, processes and workers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxaccel.data.examples import Item

MAX_EPOCHS = 1 << 40
"""By which the keys of one stream lie apart from those of the next: part of what a run means."""


class Order(Protocol):
    """Which examples make up the batch of each step."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes that batches have."""
        ...

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What the batches are drawn from where examples vary in length; () where all have one shape."""
        return ()

    def length(self, step: int, /) -> int:
        """The length to which the examples of `step` are filled up; 0 where all have one shape."""
        return 0

    def __call__(self, step: int, /) -> Item:
        """The batch of `step`: ``index``, ``epoch`` and ``mask``, and ``row`` where examples lie in buckets."""
        ...


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Examples of a split that are filled up to one length."""

    length: int
    batch_size: int
    positions: np.ndarray
    """(n,) int32: which examples of the split they are, in its order."""

    @property
    def form(self) -> Form:
        """Of its batches."""
        return Form(self.batch_size, length=self.length)


class Form(NamedTuple):
    """What tells the batches of one step from those of another: each form has its own program."""

    batch_size: int
    image_size: int = 0
    """Height and width to which the images are resized on the device; 0 takes them as they are."""
    length: int = 0
    """To which the examples are filled up; 0 where all have one shape."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with batches of one size and images of one size."""

    start: int
    """Its first step."""
    stop: int
    """The step after its last one."""
    before: int
    """Examples that earlier phases have seen."""
    batch_size: int
    image_size: int = 0
    """Height and width to which the images are resized on the device; 0 takes them as they are."""

    @property
    def form(self) -> Form:
        """Of its batches."""
        return Form(self.batch_size, self.image_size)


@dataclasses.dataclass(frozen=True)
class Shuffled(Order):
    """Batches for training: the data set over and over, newly shuffled each time, never dropping an example.

    Batches follow each other without a gap, so one may hold the end of one epoch and the start of the next.
    """

    seed: int
    size: int
    """Examples in the data set."""
    batch_size: int
    start: int = 0
    """The step of the first of these batches."""
    before: int = 0
    """Examples that were seen by then."""
    stream: int = 0
    """Which of several shuffles with one seed this is."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """One."""
        return (self.batch_size,)

    @classmethod
    def phased(cls, seed: int, size: int, phases: Sequence[Phase]) -> InTurn:
        """The batches of a run of these phases."""
        return InTurn(tuple(cls(seed, size, phase.batch_size, phase.start, phase.before) for phase in phases))

    def __call__(self, step: int) -> Item:
        """``index`` (B,) int32 into the data set, ``epoch`` (B,) int32, the number of the pass over it that each
        example belongs to, and ``mask`` (B,) float32, all ones."""
        first = self.before + (step - self.start) * self.batch_size
        epochs, offsets = np.divmod(np.arange(first, first + self.batch_size), self.size)
        parts = [
            permutation(self.seed, int(epoch) + self.stream * MAX_EPOCHS, self.size)[offsets[epochs == epoch]]
            for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return {
            "index": parts[0] if len(parts) == 1 else np.concatenate(parts),
            "epoch": epochs.astype(np.int32),
            "mask": np.ones(self.batch_size, np.float32),
        }


@dataclasses.dataclass(frozen=True)
class InTurn(Order):
    """One order after the other."""

    orders: tuple[Shuffled, ...]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of all orders."""
        return tuple({order.batch_size for order in self.orders})

    def __call__(self, step: int) -> Item:
        """The batch of the order that `step` falls into."""
        return next(order for order in reversed(self.orders) if order.start <= step)(step)


@dataclasses.dataclass(frozen=True)
class Together(Order):
    """The batches of several orders as one: arrays (orders, B)."""

    orders: tuple[Order, ...]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of each order; they are the same."""
        return self.orders[0].batch_sizes

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Those of each order; they are the same."""
        return self.orders[0].buckets

    def length(self, step: int) -> int:
        """That of each order; they are the same."""
        return self.orders[0].length(step)

    def __call__(self, step: int) -> Item:
        """Batch `step` of each order, stacked."""
        items = [order(step) for order in self.orders]
        return {name: np.stack([item[name] for item in items]) for name in items[0]}


@dataclasses.dataclass(frozen=True)
class Sequential(Order):
    """Batches for evaluation: each example once, in order; the last batch is filled up with mask 0."""

    size: int
    batch_size: int

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """One."""
        return (self.batch_size,)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __call__(self, i: int) -> Item:
        """``index`` (B,) int32, ``epoch`` 0 and ``mask`` (B,) float32, 0 where example 0 fills the batch up."""
        index = np.arange(i * self.batch_size, (i + 1) * self.batch_size, dtype=np.int32)
        real = index < self.size
        return {
            "index": np.where(real, index, 0).astype(np.int32),
            "epoch": np.zeros(self.batch_size, np.int32),
            "mask": real.astype(np.float32),
        }


@functools.lru_cache(maxsize=64)  # a few epochs of as many seeds as train at once
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch, (size,) int32.

    Sorting raw Philox words, whose stream NumPy guarantees for ever; its own `permutation` may change
    between releases, and with it every run.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int32)
