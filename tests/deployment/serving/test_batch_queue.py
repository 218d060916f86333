import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxaccel.deployment.serving.batch_queue import BatchQueue, Waiting, choose_requests

SHORT, LONG = ((4,),), ((9,),)


def queue_of(*waiting, max_batch=4, sizes=(1, 2, 4), max_examples=100):
    queue = BatchQueue(max_batch, sizes, max_examples)
    for w in waiting:
        queue.add(w)
    return queue


def wait(content, count=1, shapes=SHORT, since=0.0):
    return Waiting(shapes, count, since, content)


def contents(batch):
    return [waiting.content for waiting in batch]


@pytest.mark.parametrize(
    ("counts", "number"),
    [
        ([], 0),
        ([1], 1),
        ([50], 1),  # more than a batch: alone
        ([1] * 40, 32),
        ([1] * 9, 8),  # 23 of 32 rows would be filling
        ([1] * 17, 17),
        ([3, 3, 3], 2),  # 9 examples: 6 of them make a batch of 8, which holds no third request
        ([9], 1),  # a request is never cut
        ([30, 3], 1),
        ([1] * 2, 1),
        ([1] * 4, 4),
    ],
)
def test_as_many_requests_as_pay(counts, number):
    assert choose_requests(counts, 32, (1, 8, 32)) == number


def test_shapes_do_not_mix_and_the_oldest_is_first():
    queue = queue_of(wait("a", since=1), wait("b", shapes=LONG, since=0), wait("c", since=2))
    assert queue.oldest() == 0
    assert contents(queue.take()) == ["b"]
    assert contents(queue.take()) == ["a", "c"]
    assert queue.take() == [] and queue.oldest() is None and queue.examples == 0


def test_who_leaves_frees_the_place():
    first, second = wait("a", 3), wait("b", 1)
    queue = queue_of(first, second, max_examples=4)
    assert queue.is_full() and not queue.has_room(1)
    queue.leave(first)
    queue.leave(first)
    assert queue.examples == 1 and not queue.is_full() and queue.has_room(3)
    assert contents(queue.take()) == ["b"]
    queue.leave(second)  # after it was taken: it has no place to free
    assert queue.examples == 0


def test_a_request_larger_than_the_queue_has_its_turn():
    queue = queue_of(max_examples=4)
    assert queue.has_room(1000)
    queue.add(wait("large", 1000))
    assert not queue.has_room(1) and contents(queue.take()) == ["large"]


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.booleans(), st.sampled_from(["taken", "left", "put"])), max_size=60
    )
)
def test_everybody_is_served_once_and_in_order(steps):
    """Against a plain list: nobody is lost, doubled, overtaken within a shape, or put into too large a batch."""
    queue, present, put = queue_of(max_batch=4), [], 0
    for count, is_long, what in steps:
        if what == "put":
            present.append(wait(put, count, LONG if is_long else SHORT, float(put)))
            queue.add(present[-1])
            put += 1
        elif what == "left" and present:
            queue.leave(present.pop(count % len(present)))
        elif what == "taken":
            batch = queue.take()
            assert bool(batch) == bool(present)
            for shape in {w.shapes for w in batch}:
                same = [w for w in present if w.shapes == shape]
                assert batch == same[: len(batch)] and present[0] in batch
            assert len(batch) <= 1 or sum(w.count for w in batch) <= 4
            present = [w for w in present if w not in batch]
        assert queue.examples == sum(w.count for w in present)
