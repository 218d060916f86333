"""Meshes on eight forced CPU devices: shardings, collectives, and the same loss curve as one device."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.errors import UserError


@pytest.fixture(scope="module")
def report(told):
    """What tests/distributed/mesh_program.py found out in a process with eight devices."""
    return told(Path(__file__).with_name("mesh_program.py"))


MESHES = ["8,1,1", "1,8,1", "2,2,2", "4,1,2", "1,2,4"]


@pytest.mark.parametrize("mesh", MESHES)
def test_the_loss_curve_is_that_of_one_device(report, mesh):
    # Float32 sums in another order: after 12 steps of Adam the curves still agree to 1e-5.
    assert len(report["vit"]["1,1,1"]["losses"]) == 12
    assert report["vit"][mesh]["losses"] == pytest.approx(report["vit"]["1,1,1"]["losses"], rel=0, abs=1e-5)
    assert report["vit"]["1,1,1"]["losses"][-1] < report["vit"]["1,1,1"]["losses"][0] - 0.01


def test_batch_norm_and_augmentation_too(report):
    expected = report["convnet"]["1,1,1"]["losses"]
    assert report["convnet"]["8,1,1"]["losses"] == pytest.approx(expected, rel=0, abs=1e-5)


def test_data_parallel_sums_gradients_and_gathers_nothing(report):
    for family in ("vit", "convnet"):
        counts = report[family]["8,1,1"]["collectives"]
        assert counts["all-reduce"] > 0
        assert counts["all-gather"] == counts["all-to-all"] == counts["collective-permute"] == 0


def test_fsdp_splits_parameters_and_optimizer_state(report):
    shards = report["vit"]["1,8,1"]["shards"]
    for name in ("params/blocks/0/mlp/up/kernel", "mu/blocks/0/mlp/up/kernel"):
        whole, part = shards[name]
        assert part[0] * part[1] * 8 == whole[0] * whole[1]
    whole, part = shards["params/norm/scale"]
    assert whole == part  # too small to be worth it
    assert report["vit"]["1,8,1"]["collectives"]["all-gather"] > 0


def test_tensor_parallel_splits_heads_and_hidden_units(report):
    shards = report["vit"]["1,2,4"]["shards"]
    (width, heads, head_dim), part = shards["params/blocks/0/attention/query/kernel"]
    assert part == [width, heads // 4, head_dim]  # whole heads; too small for fsdp to split the width too
    (heads, head_dim, width), part = shards["params/blocks/0/attention/out/kernel"]
    assert part[0] == heads // 4
    (width, hidden), part = shards["params/blocks/0/mlp/up/kernel"]
    assert part[1] == hidden // 4
    (hidden, width), part = shards["params/blocks/0/mlp/down/kernel"]
    assert part[0] == hidden // 4


def test_tensor_parallel_alone_gathers_nothing(report):
    counts = report["vit"]["4,1,2"]["collectives"]
    assert counts["all-gather"] == counts["all-to-all"] == counts["collective-permute"] == 0
    assert counts["all-reduce"] > 0


def test_replicas_are_spread_and_never_talk(report):
    one, eight = report["replicas"]["1"], report["replicas"]["8"]
    assert np.shape(eight["losses"]) == (1, 8)
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
    whole, part = eight["shards"]
    assert part == [1, *whole[1:]]
    assert not any(eight["collectives"].values())


@pytest.mark.parametrize(
    "shape, says",
    [
        ({"data": 3}, "needs 3 devices and there are"),
        ({"data": 0}, "must be positive"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
    ],
)
def test_meshes_that_cannot_be(shape, says):
    with pytest.raises(UserError, match=says):
        make_mesh(MeshShape(**shape), jax.devices()[:1])


def test_a_mesh_that_does_not_come_out_even():
    with pytest.raises(UserError, match="does not divide over 4 devices"):
        make_mesh(MeshShape(data=-1, model=3), jax.devices()[:1] * 4)
