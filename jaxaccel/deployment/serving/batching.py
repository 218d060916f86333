"""Dynamic batching: `Batcher` joins requests into batches, one of which is computed while the next one gathers.

Requests are handed over in an event loop. A thread of its own joins their arrays, runs the engine, and cuts its outputs
into the answers.
"""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge

from jaxaccel.core.options import Count, NonNegative, Options
from jaxaccel.deployment.serving.batch_queue import BatchQueue, Waiting, shapes_of
from jaxaccel.deployment.serving.faults import BUSY, LATE, Refusal
from jaxaccel.deployment.serving.worker import Worker
from jaxaccel.deployment.signature import Arrays, Engine

Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchOptions(Options):
    """How requests are joined."""

    max_batch: Count = 32
    """Examples of a batch at most."""
    max_delay_ms: NonNegative = 2
    """Milliseconds that a request waits at most for others to join it, while the device is free."""
    max_queue: Count = 1024
    """Examples that may wait. Further requests are answered with 503."""
    timeout_ms: Annotated[float, Ge(1)] = 60_000
    """Milliseconds after which a request is given up. A client may ask for less."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said, and how long it took."""

    outputs: Outputs
    batch: int
    """Examples of the batch in which it was computed."""
    waited: float
    """Seconds in the queue."""
    computed: float
    """Seconds of the batch on the device."""


@dataclasses.dataclass(frozen=True)
class _Request:
    arrays: Arrays
    future: asyncio.Future[Answer]


class Batcher:
    """Answers requests to one engine.

    Args:
      engine: what computes them.
      options: how they are joined.
      observe: is told of each batch: its requests, its examples, and its seconds.
    """

    def __init__(
        self,
        engine: Engine,
        options: BatchOptions,
        observe: Callable[[int, int, float], None] = lambda requests, examples, seconds: None,
    ) -> None:
        self.engine, self.options = engine, options
        self._observe = observe
        self._names = [spec.name for spec in engine.signature.inputs]
        self._queue = BatchQueue[_Request](options.max_batch, engine.batches, options.max_queue)
        self._wake = asyncio.Event()
        self._closing = False
        self._worker = Worker(f"engine {engine.name}")
        self._task = asyncio.get_running_loop().create_task(self._compute_batches())

    @property
    def waiting(self) -> int:
        """Examples in the queue."""
        return self._queue.examples

    async def submit(self, arrays: Arrays, timeout: float | None = None) -> Answer:
        """The answer to one request. Its place in the queue is free as soon as the caller is cancelled.

        Args:
          arrays: the inputs by name, of any number of examples.
          timeout: seconds to wait at most, within that of the options.

        Raises:
          UserError: they are not the inputs.
          Refusal: too many others wait, the time is over, or the model is being unloaded.
        """
        count = self.engine.signature.check_inputs(arrays)
        if count == 0:
            raise Refusal("there must be at least one example")
        if self._closing:
            raise Refusal("the model is being unloaded", BUSY)
        if not self._queue.has_room(count):
            raise Refusal("too many requests wait: ask again later", BUSY)
        loop = asyncio.get_running_loop()
        waiting = Waiting(
            shapes_of(arrays, self._names), count, loop.time(), _Request(arrays, loop.create_future())
        )
        self._queue.add(waiting)
        if self._queue.examples == count or self._queue.is_full():
            self._wake.set()
        longest = self.options.timeout_ms / 1e3
        try:
            async with asyncio.timeout(longest if timeout is None else min(timeout, longest)):
                return await waiting.content.future
        except TimeoutError:
            raise Refusal("the answer was not ready in time", LATE) from None
        finally:
            self._queue.leave(waiting)

    async def close(self) -> None:
        """Takes no more requests, answers those that wait, and ends the thread."""
        self._closing = True
        self._wake.set()
        await self._task
        self._worker.end()

    async def _compute_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while await self._gather():
            await self._compute(loop, self._queue.take())

    async def _gather(self) -> bool:
        """Waits until there is a batch to compute; False at the end."""
        now = asyncio.get_running_loop().time
        while True:
            self._wake.clear()
            since = self._queue.oldest()
            if since is None:
                if self._closing:
                    return False
                await self._wake.wait()
                continue
            left = since + self.options.max_delay_ms / 1e3 - now()
            if left <= 0 or self._closing or self._queue.is_full():
                return True
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return True

    async def _compute(self, loop: asyncio.AbstractEventLoop, batch: Sequence[Waiting[_Request]]) -> None:
        if not batch:  # everybody has left since
            return
        requests = [waiting.content for waiting in batch]
        counts = [waiting.count for waiting in batch]
        begin = loop.time()
        found, seconds = await self._worker.run(
            run_batch, self.engine, [request.arrays for request in requests], counts
        )
        self._observe(len(requests), sum(counts), seconds)
        for waiting, outputs in zip(batch, found, strict=True):
            future = waiting.content.future
            if future.done():  # its client has left, or its time is over
                continue
            if isinstance(outputs, Exception):
                future.set_exception(outputs)
            else:
                future.set_result(Answer(outputs, sum(counts), begin - waiting.since, seconds))


def run_batch(
    engine: Engine, requests: Sequence[Arrays], counts: Sequence[int]
) -> tuple[list[Outputs | Exception], float]:
    """Computes requests as one batch.

    If the batch fails, its requests are computed one by one, so that one that the engine refuses harms no other.

    Args:
      engine: what computes them.
      requests: arrays whose examples have the same shapes.
      counts: examples of each.

    Returns:
      Of each request its outputs, or why there are none; and the seconds that all took.
    """
    begin = time.perf_counter()
    found: list[Outputs | Exception] = []
    try:
        found += split_outputs(_run_checked(engine, join_arrays(requests), sum(counts)), counts)
    except Exception as error:
        if len(requests) == 1:
            found.append(error)
        else:
            for request, count in zip(requests, counts, strict=True):
                found += run_batch(engine, [request], [count])[0]
    return found, time.perf_counter() - begin


def join_arrays(requests: Sequence[Arrays]) -> Arrays:
    """The arrays of requests, one behind the other."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def split_outputs(outputs: Outputs, counts: Sequence[int]) -> list[Outputs]:
    """The outputs of each request."""
    bounds = np.cumsum([0, *counts]).tolist()
    return [
        {name: array[start:end] for name, array in outputs.items()}
        for start, end in itertools.pairwise(bounds)
    ]


def _run_checked(engine: Engine, arrays: Arrays, count: int) -> Outputs:
    """What the engine gives, once it is certain that there is a row for each example."""
    outputs = engine.run(arrays)
    specs = engine.signature.outputs
    if outputs.keys() != {spec.name for spec in specs} or any(len(a) != count for a in outputs.values()):
        raise RuntimeError(f"the engine {engine.name} did not give every output of each of {count} examples")
    return outputs
