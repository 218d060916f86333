"""Which examples make up a batch, and that both ways to feed yield the same bits."""

import os

import jax
import numpy as np
import pytest

from jaxaccel.data.data_sets import open_source
from jaxaccel.data.order import Phase, Sequential, Shuffled, permutation
from jaxaccel.distributed import MeshShape, batch_sharding, make_mesh
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.feed import choose_mode, resident_feed, stream_feed
from jaxaccel.training.fused_steps import gather_batch
from jaxaccel.training.stream import Batches, local_part


def test_an_epoch_holds_each_example_once():
    order = Shuffled(seed=3, size=100, batch_size=32)
    seen = np.concatenate([order(k)["index"] for k in range(25)])  # 800 examples: 8 epochs
    for epoch in range(8):
        assert sorted(seen[100 * epoch : 100 * (epoch + 1)]) == list(range(100))
    assert not np.array_equal(seen[:100], seen[100:200])
    epochs = np.concatenate([order(k)["epoch"] for k in range(25)])
    np.testing.assert_array_equal(epochs, np.arange(800) // 100)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    one, other = Shuffled(0, 1000, 64), Shuffled(1, 1000, 64)
    np.testing.assert_array_equal(one(37)["index"], Shuffled(0, 1000, 64)(37)["index"])
    assert not np.array_equal(one(37)["index"], other(37)["index"])
    assert Shuffled(0, 10, 64)(5)["index"].shape == (64,)  # larger than the data set: several epochs


def test_the_order_never_changes():
    # A new NumPy, or a new idea in `permutation`, must not change what a seed means.
    assert permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(7, 2, 10).tolist() == [6, 7, 8, 4, 0, 1, 5, 3, 9, 2]


def test_each_size_of_batch_has_its_own_rows(digits):
    order = Shuffled.phased(0, len(digits), [Phase(0, 2, 0, 8), Phase(2, 4, 16, 16)])
    element = ImageClassification().element
    batches = Batches(digits, element, order, range(4), {8: slice(0, 4), 16: slice(4, 16)})
    assert [batches[i]["image"].shape[0] for i in range(4)] == [4, 4, 12, 12]


def test_evaluation_is_padded_and_masked():
    order = Sequential(size=10, batch_size=4)
    items = [order(i) for i in range(len(order))]
    index = np.concatenate([item["index"] for item in items])
    mask = np.concatenate([item["mask"] for item in items])
    assert len(items) == 3
    assert index[mask > 0].tolist() == list(range(10))
    assert mask.sum() == 10


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", "test")


@pytest.mark.parametrize("workers", [0, 2])
def test_both_feeds_yield_the_same_bits(digits, workers):
    task, mesh = ImageClassification(), make_mesh(MeshShape(data=1))
    for order, calls in ((Shuffled(0, len(digits), 64), [range(5, 6), range(6, 7), range(7, 8)]),
                         (Sequential(len(digits), 64), [range(6, 7), range(7, 8)])):  # fmt: skip
        resident = resident_feed(digits, task.element, order, mesh)
        stream = stream_feed(digits, task.element, order, mesh, workers)
        assert not stream.arrays
        pairs = list(zip(resident.items(calls), stream.items(calls), strict=True))
        assert len(pairs) == len(calls)
        for row, streamed in pairs:
            there = gather_batch(resident.arrays, jax.tree.map(lambda x: x[0], row))
            here = jax.tree.map(lambda x: x[0], streamed)
            assert there.keys() == here.keys() == {"image", "label", "index", "epoch", "mask"}
            for name in there:
                assert there[name].dtype == here[name].dtype
                np.testing.assert_array_equal(there[name], here[name])


def test_resident_where_it_fits(digits):
    element = ImageClassification().element
    assert choose_mode("auto", 0.25, (digits,), element, make_mesh(MeshShape(data=1))) == "resident"
    assert choose_mode("auto", 1e-9, (digits,), element, make_mesh(MeshShape(data=1))) == "stream"
    assert choose_mode("stream", 0.25, (digits,), element, make_mesh(MeshShape(data=1))) == "stream"


def test_local_part_is_the_whole_batch_in_one_process():
    assert local_part(batch_sharding(make_mesh(MeshShape())), 64) == slice(0, 64)


def test_workers_see_no_accelerator(digits, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    from jaxaccel.training import stream

    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(stream, "end_with", lambda parent: None)
    stream._begin(os.getpid(), 0, 1)
    assert os.environ["JAX_PLATFORMS"] == "cpu"
