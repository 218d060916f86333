"""One split on its way into jitted steps: resident on the device, or streamed. Both yield the same batches."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxaccel.core import runtime
from jaxaccel.data.buckets import BucketedSequential
from jaxaccel.data.data_sets import Part
from jaxaccel.data.examples import Element, Item, Padded, read_elements
from jaxaccel.data.order import Bucket, Order, Sequential
from jaxaccel.data.source import Source
from jaxaccel.distributed import batch_sharding, placed, replicated
from jaxaccel.errors import UserError, option
from jaxaccel.training import resident
from jaxaccel.training.bucket_plan import order_in_buckets
from jaxaccel.training.run_log import RunLog
from jaxaccel.training.run_setup import RunSetup
from jaxaccel.training.stream import Batches, local_part, prefetch, stream

Mode = Literal["resident", "stream"]
Arrays = Mapping[str, jax.Array | jax.ShapeDtypeStruct]
Pad = Callable[[Item, int], Item]


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a jitted call needs: arrays, the same for all calls on batches of one length, and one item a call."""

    arrays: Arrays
    """The whole split, copied to each device; empty where it is streamed. Where programs are only compiled, shapes."""
    mesh: Mesh
    items: Callable[[Sequence[range]], Iterator[Item]]
    """For each range of steps, arrays (steps, batch, ...) on the device: ``index`` and ``mask`` and, where
    the split is streamed, the examples themselves."""
    order: Order
    """Which examples are in each batch."""
    by_length: Mapping[int, Arrays] = dataclasses.field(default_factory=dict)
    """In the place of `arrays` where examples vary in length: those of each bucket."""

    def arrays_of(self, length: int) -> Arrays:
        """The arrays that batches of that length are gathered from."""
        return self.by_length.get(length, self.arrays)

    def item_shape(
        self, batch: Mapping[str, jax.ShapeDtypeStruct], steps: int, length: int = 0
    ) -> dict[str, Any]:
        """Shape, dtype and sharding of the item of a call of `steps` steps of such batches."""
        sharding = batch_sharding(self.mesh, leading=1)
        rows = {"row": batch["index"]} if length in self.by_length else {}
        return {
            name: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype, sharding=sharding)
            for name, x in (dict(batch) | rows).items()
            if name not in self.arrays_of(length)
        }


@dataclasses.dataclass(frozen=True)
class Feeds:
    """Those of a run."""

    resident: bool
    """Whether the data lives on the devices, else it is streamed."""
    train: Feed
    held_out: tuple[Feed, ...]
    """Of the split that decides while training and, where there is one, of the test split."""
    lengths: tuple[int, ...]
    """How many batches each of them has."""


def open_feeds(setup: RunSetup, log: RunLog) -> Feeds:
    """Opens the feeds of a run; where the data is to be resident, it is read here.

    Raises:
      UserError: replicas would have to stream their data, or the data cannot be read.
    """
    data, task = setup.recipe.data, setup.problem.task
    splits, mesh = setup.problem.splits, setup.mesh
    shuffled = setup.trainer.order(setup.plan.order)
    in_order = order_held_out(setup)
    pairs = [*zip(splits.held_out, in_order, strict=True)]
    mode = mode_of(setup)
    if mode == "resident":
        with log.working("reading data", len(splits.train) + sum(map(len, splits.held_out))) as advance:
            train = resident_feed(splits.train, task.element, shuffled, mesh, advance, pad=task.pad)
            held_out = [
                resident_feed(source, task.element, order, mesh, advance, split=setup.split, pad=task.pad)
                for source, order in pairs
            ]
    elif not setup.split:
        raise UserError(
            f"replicas need the data on the device: {option('data.feed', 'resident')}, or fewer examples"
        )
    else:
        train = stream_feed(splits.train, task.element, shuffled, mesh, data.workers, pad=task.pad)
        held_out = [
            stream_feed(source, task.element, order, mesh, data.workers, pad=task.pad)
            for source, order in pairs
        ]
    return Feeds(mode == "resident", train, tuple(held_out), tuple(map(len, in_order)))


def describe_feeds(setup: RunSetup) -> Feeds:
    """Describes the feeds of a run by shapes alone: programs can be compiled for them, and nothing is read."""
    splits, task, mesh = setup.problem.splits, setup.problem.task, setup.mesh
    mode = mode_of(setup)

    def describe(source: Source, order: Order) -> Feed:
        def arrays(source: Source, element: Element) -> Arrays:
            shapes = resident.describe(source, element)
            return placed(shapes, dict.fromkeys(shapes, replicated(mesh)))

        whole, by_length = {}, {}
        if mode == "resident":
            whole, by_length = _of_each_length(arrays, source, task.element, order, task.pad)
        return Feed(whole, mesh, lambda calls: iter(()), order, by_length)

    in_order = order_held_out(setup)
    train = describe(splits.train, setup.trainer.order(setup.plan.order))
    held_out = tuple(map(describe, splits.held_out, in_order))
    return Feeds(mode == "resident", train, held_out, tuple(map(len, in_order)))


def order_held_out(setup: RunSetup) -> Sequence[Sequential | BucketedSequential]:
    """The batches of each split that is held out."""
    problem = setup.problem
    if bounds := problem.task.bounds:
        return [
            order_in_buckets(setup.recipe, lengths, bounds, setup.parts) for lengths in problem.lengths[1:]
        ]
    size = setup.recipe.chosen_batch_size
    return [Sequential(len(source), size) for source in problem.splits.held_out]


def mode_of(setup: RunSetup) -> Mode:
    """Whether the data of a run is resident or streamed, which does not depend on its batch size."""
    data, splits = setup.recipe.data, setup.problem.splits
    sources = (splits.train, *splits.held_out)
    return choose_mode(data.feed, data.resident_share, sources, setup.problem.task.example, setup.mesh)


def choose_mode(
    feed: Literal["auto"] | Mode, share: float, sources: Sequence[Source], element: Element, mesh: Mesh
) -> Mode:
    """Chooses resident where all `sources` together take no more than `share` of a device's memory.

    `element` gives an example as it lies there, filled up to the greatest length where lengths vary.
    """
    if feed != "auto":
        return feed
    size = sum(resident.size_in_bytes(source, element) for source in sources)
    return "resident" if size <= share * runtime.device_memory(mesh.local_devices[0]) else "stream"


def resident_feed(
    source: Source,
    element: Element,
    order: Order,
    mesh: Mesh,
    advance: Callable[[int], Any] = lambda n: None,
    *,
    split: bool = True,
    pad: Pad | None = None,
) -> Feed:
    """`source` read whole and copied to each device of `mesh`; batches are split over the devices, unless each is to
    see all of them. `pad` fills examples up where `order` has buckets."""
    sharding = batch_sharding(mesh, leading=1) if split else replicated(mesh)

    def copy(source: Source, element: Element) -> Arrays:
        return {
            name: jax.make_array_from_process_local_data(replicated(mesh), array, array.shape)
            for name, array in resident.load(source, element, advance).items()
        }

    arrays, by_length = _of_each_length(copy, source, element, order, pad)

    def items(calls: Sequence[range]) -> Iterator[Item]:
        rows = (_stacked([order(step) for step in call]) for call in calls)
        return prefetch(rows, lambda item: _put(item, sharding, whole=True))

    return Feed(arrays, mesh, items, order, by_length)


def _of_each_length(
    load: Callable[[Source, Element], Arrays], source: Source, element: Element, order: Order, pad: Pad | None
) -> tuple[Arrays, dict[int, Arrays]]:
    """`load` of the whole split, or of each of its buckets, by length."""
    if not order.buckets:
        return load(source, element), {}
    assert pad is not None

    def of_bucket(bucket: Bucket) -> Arrays:
        return load(Part(source, bucket.positions, source.split), Padded(element, pad, bucket.length))

    return {}, {bucket.length: of_bucket(bucket) for bucket in order.buckets}


def stream_feed(
    source: Source, element: Element, order: Order, mesh: Mesh, workers: int = 0, *, pad: Pad | None = None
) -> Feed:
    """`source` read while training; each call is one step. `pad` fills examples up where `order` has buckets.

    Raises:
      UserError: the first example has a label that is no class: a split without labels is found here.
    """
    read_elements(source, element, range(1))
    sharding = batch_sharding(mesh, leading=1)

    def items(calls: Sequence[range]) -> Iterator[Item]:
        if not calls:
            return iter(())
        steps = range(calls[0].start, calls[-1].stop)
        parts = {size: local_part(batch_sharding(mesh), size) for size in order.batch_sizes}
        batches = stream(Batches(source, element, order, steps, parts, pad), workers)
        return prefetch(
            (_stacked([batch]) for batch in batches), lambda item: _put(item, sharding, whole=False)
        )

    return Feed({}, mesh, items, order)


def _stacked(rows: Sequence[Item]) -> Item:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _put(item: Item, sharding: NamedSharding, *, whole: bool) -> Any:
    """(k, B, ...) arrays of the host to the devices; `whole` if they hold all processes' rows."""
    if sharding.mesh.size == 1 and whole:
        return item  # indices and masks: the jitted call takes them in faster than `device_put` does
    if jax.process_count() == 1:
        return jax.device_put(item, sharding)
    if whole:
        return {
            name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for name, array in item.items()
        }
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in item.items()}
