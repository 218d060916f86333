"""Batches read while training: worker processes read and decode, the device never waits if they keep up.

One element of the pipeline is one whole batch, named by its step. There is no iterator state to save, and
neither the number of workers nor that of processes changes what a batch holds.
"""

import dataclasses
import functools
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np

from jaxaccel.data.child_processes import end_with
from jaxaccel.data.examples import Element, Item, Padded, read_elements
from jaxaccel.data.order import Order
from jaxaccel.data.source import Source
from jaxaccel.errors import UserError, option

THREADS = 4
"""Threads that read ahead, in each worker process or, without any, in this one."""
AHEAD = 2
"""Items that are on their way to the device before they are asked for."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random access to batches: element i is this process's part of the batch of step ``steps[i]``."""

    source: Source
    element: Element
    """Of an example, where all have one shape."""
    order: Order
    steps: range
    parts: Mapping[int, slice] = dataclasses.field(default_factory=dict)
    """{batch size: the rows of such a batch that this process's devices need}; all, where it says nothing."""
    pad: Callable[[Item, int], Item] | None = None
    """Fills an example up to a length, where they vary."""

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int) -> Item:
        step = self.steps[i]
        whole, length = self.order(step), self.order.length(step)
        part = self.parts.get(len(whole["index"]), slice(None))
        item = {name: array[part] for name, array in whole.items() if name != "row"}
        element = Padded(self.element, self.pad, length) if length and self.pad else self.element
        elements = read_elements(self.source, element, item["index"].tolist())
        return item | {name: np.stack([e[name] for e in elements]) for name in elements[0]}


def stream(batches: Batches, workers: int = 0) -> Iterator[Item]:
    """The batches in order, read ahead by `workers` processes (0: by threads of this one)."""
    import grain
    from absl import flags

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    dataset = grain.MapDataset.source(cast(Any, batches)).to_iter_dataset(options)
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # grain's workers read absl's flags, which only absl's own main parses
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=functools.partial(_begin, os.getpid()),
        )
    return iter(dataset)


def prefetch(items: Iterable[Any], put: Callable[[Any], Any], depth: int = AHEAD) -> Iterator[Any]:
    """`put(item)` for each item, called `depth` items ahead, so that copies to the device overlap with work."""
    queue: deque[Any] = deque()
    for item in items:
        queue.append(put(item))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


def local_part(sharding: jax.sharding.Sharding, batch_size: int) -> slice:
    """The rows of a batch of `batch_size` that the devices of this process hold under `sharding`."""
    found = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = sorted({(index[0].start or 0, index[0].stop or batch_size) for index in found if index})
    if not rows:
        raise UserError(
            "the mesh leaves a process without a device: make it larger, or start fewer processes"
        )
    if any(before[1] != after[0] for before, after in itertools.pairwise(rows)):
        raise UserError(
            f"a process would need several pieces of each batch: use {option('data.feed', 'resident')} with this mesh"
        )
    return slice(rows[0][0], rows[-1][1])


def _begin(trainer: int, index: int, count: int) -> None:
    """Prepares a worker process, which ends with the trainer.

    A worker that so much as lists JAX's devices would take the accelerator's memory.
    """
    end_with(trainer)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        jax.config.update("jax_platforms", "cpu")
