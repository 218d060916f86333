import asyncio
import itertools
import threading

import numpy as np
import pytest
from serving_engines import Rows

from jaxaccel.deployment.serving.batching import Batcher, BatchOptions, run_batch
from jaxaccel.deployment.serving.faults import BUSY, LATE, Refusal
from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError


def rows(start, count=1):
    return {"x": np.arange(start, start + 4 * count, dtype=np.float32).reshape(count, 4)}


def check(answer, arrays):
    np.testing.assert_array_equal(answer.outputs["sum"], arrays["x"].sum(1))
    np.testing.assert_array_equal(answer.outputs["scaled"], 3 * arrays["x"])


def with_batcher(engine, work, **options):
    """What the coroutine function `work` gives of a batcher; it is closed at the end."""

    async def main():
        batcher = Batcher(engine, BatchOptions(**options))
        try:
            return await asyncio.wait_for(work(batcher), 60)
        finally:
            await batcher.close()

    return asyncio.run(main())


def test_ten_thousand_at_once_get_their_own_answers():
    engine = Rows(seconds=1e-4)
    requests = [rows(7 * i, 1 + i % 5) for i in range(10_000)]

    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(arrays) for arrays in requests))

    answers = with_batcher(engine, work, max_queue=100_000)
    for answer, arrays in zip(answers, requests, strict=True):
        check(answer, arrays)
    assert sum(engine.counts) == 30_000
    assert len(engine.counts) < 1100, "30,000 examples make 938 full batches of 32"


def test_what_comes_while_a_batch_is_computed_is_the_next_one():
    engine = Rows()
    engine.gate = threading.Event()

    async def work(batcher):
        first = asyncio.create_task(batcher.submit(rows(0)))
        while not engine.counts:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit(rows(i))) for i in range(8)]
        await asyncio.sleep(0.01)
        assert engine.counts == [1] and batcher.waiting == 8
        engine.gate.set()
        await asyncio.gather(first, *others)

    with_batcher(engine, work)
    assert engine.counts == [1, 8]


def test_a_request_waits_for_others_as_long_as_it_may():
    engine = Rows()
    engine.batches = (1, 4)

    async def work(batcher):
        await asyncio.gather(*(batcher.submit(rows(i)) for i in range(3)))
        begin = asyncio.get_running_loop().time()
        await batcher.submit(rows(0))
        return asyncio.get_running_loop().time() - begin

    assert with_batcher(engine, work, max_delay_ms=100) >= 0.1
    assert engine.counts == [3, 1]


def test_a_full_batch_waits_for_nobody():
    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(rows(i)) for i in range(8)))

    answers = with_batcher(Rows(), work, max_batch=8, max_delay_ms=60_000)
    assert {answer.batch for answer in answers} == {8}


def test_a_full_queue_refuses_and_a_client_that_leaves_frees_its_place():
    engine = Rows()
    engine.gate = threading.Event()

    async def work(batcher):
        running = asyncio.create_task(batcher.submit(rows(0)))
        while not engine.counts:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.submit(rows(i))) for i in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await batcher.submit(rows(9))
        assert refused.value.kind == BUSY
        waiting[1].cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 3
        last = asyncio.create_task(batcher.submit(rows(5)))
        await asyncio.sleep(0)
        engine.gate.set()
        for task, start in ((running, 0), (waiting[0], 0), (waiting[2], 2), (waiting[3], 3), (last, 5)):
            check(await task, rows(start))
        assert waiting[1].cancelled()

    with_batcher(engine, work, max_queue=4)


def test_a_deadline_ends_the_wait_and_frees_the_place():
    engine = Rows()
    engine.gate = threading.Event()

    async def work(batcher):
        running = asyncio.create_task(batcher.submit(rows(0)))
        await asyncio.sleep(0.02)
        for timeout in (0.01, None):  # its own, and that of the options
            with pytest.raises(Refusal) as refused:
                await batcher.submit(rows(1), timeout)
            assert refused.value.kind == LATE and batcher.waiting == 0
        engine.gate.set()
        with pytest.raises(Refusal):
            await running

    with_batcher(engine, work, timeout_ms=50)
    assert engine.counts == [1], "what nobody waits for is not computed"


def test_one_bad_request_harms_no_other():
    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(rows(4 * i)) for i in range(8)), return_exceptions=True)

    answers = with_batcher(Rows(refused=5), work, max_delay_ms=20)
    for i, answer in enumerate(answers):
        if i == 1:  # 4, 5, 6, 7
            assert isinstance(answer, UserError) and "must not be 5" in str(answer)
        else:
            check(answer, rows(4 * i))


def test_no_outputs_are_shifted_where_the_engine_gives_too_few():
    engine = Rows()
    engine.run = lambda arrays: {"sum": arrays["x"].sum(1)[:-1], "scaled": arrays["x"]}
    found, _ = run_batch(engine, [rows(0), rows(1)], [1, 1])
    assert [type(answer) for answer in found] == [RuntimeError, RuntimeError]


def test_requests_of_different_lengths_are_different_batches():
    class Lengths(Rows):
        def __init__(self):
            super().__init__()
            spec = TensorSpec("x", "float32", (None, None))
            self.signature = Signature((spec,), (TensorSpec("sum", "float32", (None,)),))
            self.shapes = []

        def run(self, arrays):
            self.shapes.append(arrays["x"].shape)
            return {"sum": arrays["x"].sum(1)}

    engine = Lengths()
    requests = [{"x": np.full((1, 1 + i % 3), i, np.float32)} for i in range(30)]

    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(arrays) for arrays in requests))

    answers = with_batcher(engine, work, max_delay_ms=20)
    assert [a.outputs["sum"].tolist() for a in answers] == [[i * (1 + i % 3)] for i in range(30)]
    assert {columns for _, columns in engine.shapes} == {1, 2, 3}


def test_closing_answers_what_waits_and_refuses_what_comes():
    async def work(batcher):
        tasks = [asyncio.create_task(batcher.submit(rows(i))) for i in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        for i, task in enumerate(tasks):
            check(await task, rows(i))
        with pytest.raises(Refusal):
            await batcher.submit(rows(0))

    with_batcher(Rows(), work, max_delay_ms=60_000)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"y": rows(0)["x"]},
        {"x": np.zeros((0, 4), np.float32)},
        {"x": np.zeros((1, 4))},
        rows(0) | {"y": 1},
    ],
)
def test_what_is_no_input_never_reaches_a_batch(arrays):
    engine = Rows()
    with pytest.raises(UserError):
        with_batcher(engine, lambda batcher: batcher.submit(arrays))
    assert not engine.counts


def test_everything_ends_in_random_storms():
    """Requests that come, leave and are late at random: each ends, right or refused, and the queue is empty."""
    random = np.random.default_rng(0)
    counts = itertools.repeat(400, 3)

    async def client(batcher, i, fate):
        arrays = rows(i, 1 + i % 4)
        task = asyncio.create_task(batcher.submit(arrays, 0.002 if fate == 1 else None))
        if fate == 2:
            await asyncio.sleep(0)
            task.cancel()
        try:
            check(await task, arrays)
        except (Refusal, asyncio.CancelledError):
            return False
        return True

    async def work(batcher):
        for count in counts:
            fates = random.integers(0, 3, count).tolist()
            ended = await asyncio.gather(*(client(batcher, i, fate) for i, fate in enumerate(fates)))
            assert all(ok for ok, fate in zip(ended, fates, strict=True) if fate == 0)
            assert batcher.waiting == 0

    with_batcher(Rows(seconds=1e-3), work, max_queue=10_000)
