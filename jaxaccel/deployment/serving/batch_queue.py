"""Requests that wait, and which of them make the next batch: plain Python without a clock, threads or a network.

Requests join a batch if the shapes of their examples agree. Each shape has its own line, in the order of arrival, and
the line whose first request waits longest is served first. So nobody waits forever.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of the examples, by input."""
T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Waiting(Generic[T]):
    """A request that waits."""

    shapes: Shapes
    count: int
    """Its examples."""
    since: float
    """When it came, in seconds of the caller's clock."""
    content: T
    gone: bool = False
    """Whether its client has left. It then has no place in the queue, and is dropped when its turn comes."""


class BatchQueue(Generic[T]):
    """Requests in the order of their arrival, a line for each shape.

    Args:
      max_batch: examples of a batch. A request that alone has more is a batch of its own.
      sizes: numbers of examples that are computed without filling up, ascending.
      max_examples: examples that may wait.
    """

    def __init__(self, max_batch: int, sizes: Sequence[int], max_examples: int) -> None:
        self.max_batch, self.max_examples = max_batch, max_examples
        self.sizes = tuple(sorted(size for size in sizes if size <= max_batch))
        self.examples = 0
        self._lines: dict[Shapes, collections.deque[Waiting[T]]] = {}
        self._counts: collections.Counter[Shapes] = collections.Counter()

    def has_room(self, count: int) -> bool:
        """Whether `count` more examples may wait. One request may always, so that a large one has its turn."""
        return self.examples == 0 or self.examples + count <= self.max_examples

    def add(self, waiting: Waiting[T]) -> None:
        """Puts a request behind those of its shape."""
        self._lines.setdefault(waiting.shapes, collections.deque()).append(waiting)
        self._count(waiting, waiting.count)

    def leave(self, waiting: Waiting[T]) -> None:
        """Frees the place of a request whose client has left."""
        if not waiting.gone:
            waiting.gone = True
            self._count(waiting, -waiting.count)

    def oldest(self) -> float | None:
        """Since when the request that is served next waits; None where nobody waits."""
        line = self._next_line()
        return line[0].since if line else None

    def is_full(self) -> bool:
        """Whether some line has a whole batch, so that nothing is gained by waiting."""
        return max(self._counts.values(), default=0) >= self.max_batch

    def take(self) -> list[Waiting[T]]:
        """Takes the requests of the next batch out of the queue; an empty list where nobody waits."""
        line = self._next_line()
        if not line:
            return []
        taken: list[Waiting[T]] = []
        number = choose_requests(self._first_counts(line), self.max_batch, self.sizes)
        while line and len(taken) < number:
            waiting = line.popleft()
            if not waiting.gone:
                taken.append(waiting)
                # Whoever leaves from now on has no place here to free.
                waiting.gone = True
                self._count(waiting, -waiting.count)
        return taken

    def _count(self, waiting: Waiting[T], change: int) -> None:
        self.examples += change
        self._counts[waiting.shapes] += change

    def _first_counts(self, line: collections.deque[Waiting[T]]) -> list[int]:
        """Examples of the first requests, up to one more than fit into a batch."""
        counts, total = [], 0
        for waiting in line:
            if not waiting.gone:
                counts.append(waiting.count)
                total += waiting.count
            if total > self.max_batch:
                break
        return counts

    def _next_line(self) -> collections.deque[Waiting[T]] | None:
        """The line whose first request waits longest. Those who have left are dropped on the way."""
        for shapes, line in list(self._lines.items()):
            while line and line[0].gone:
                line.popleft()
            if not line:
                del self._lines[shapes], self._counts[shapes]
        return min(self._lines.values(), key=lambda line: line[0].since, default=None)


def choose_requests(counts: Sequence[int], max_batch: int, sizes: Sequence[int]) -> int:
    """Chooses how many of the first requests make a batch.

    As many as fit into `max_batch`. If less than half of the size that would be computed were examples, and the rest
    filling, only as many are taken as fill the next smaller size: of 9 requests the first 8, where the sizes are 1, 8
    and 32.

    Args:
      counts: examples of the requests, in the order of arrival.
      max_batch: examples of a batch.
      sizes: numbers of examples that are computed without filling up, ascending.

    Returns:
      At least 1 where there are requests.
    """
    number = _count_fitting(counts, max_batch)
    examples = sum(counts[:number])
    larger = next((size for size in sizes if size >= examples), examples)
    smaller = max((size for size in sizes if size <= examples), default=0)
    if 2 * examples < larger and smaller:
        number = _count_fitting(counts, smaller)
    return max(number, min(1, len(counts)))


def _count_fitting(counts: Sequence[int], room: int) -> int:
    """How many of the first requests fit into `room` examples."""
    total = 0
    for number, count in enumerate(counts):
        total += count
        if total > room:
            return number
    return len(counts)


def shapes_of(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Shapes:
    """The shapes of the examples in `arrays`, in the order of `names`."""
    return tuple(arrays[name].shape[1:] for name in names)
