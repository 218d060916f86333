"""Quantized parameters on eight forced CPU devices: shardings, equal results, checkpoints on another mesh."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def report(told):
    """What sharded_program.py found out in a process with eight devices."""
    return told(Path(__file__).with_name("sharded_program.py"))


def test_results_are_those_of_one_device(report):
    for bits, mesh in [(8, "8,1,1"), (8, "1,8,1"), (8, "2,2,2"), (8, "1,1,8"), (4, "2,2,2")]:
        for mode in ("dynamic", "static", "bfloat16"):
            # A float32 sum in another order may move an activation over a rounding boundary: one step of 127.
            assert report[f"{bits}/{mesh}/{mode}"] < 0.02, (bits, mesh, mode)


def test_integers_and_scales_are_split_as_what_they_stand_for(report):
    split = report["8/1,1,8/shards"]
    assert split["blocks/0/mlp/up/kernel/qvalue"] == [[64, 256], [64, 32]]
    assert split["blocks/0/mlp/up/kernel/scale"] == [[1, 256], [1, 32]]
    assert split["blocks/0/mlp/down/kernel/qvalue"] == [[256, 64], [32, 64]]
    assert split["blocks/0/mlp/down/kernel/scale"] == [[1, 64], [1, 64]]
    fsdp = report["8/1,8,1/shards"]
    assert fsdp["blocks/0/mlp/up/kernel/scale"] == [[1, 256], [1, 32]]


def test_checkpoints_come_back_on_another_mesh(report):
    assert report["restored"] is True
    assert report["restored shards"] == report["8/1,1,8/shards"]


def test_shard_map(report):
    assert max(report["shard_map"]) < 1e-5


def test_every_array_type_passes_through_shard_map(report):
    """Weights alone to the rounding of float32, gradients too; int8 activations to theirs (divided by 1e3 there)."""
    found = report["compressed in shard_map"]
    assert len(found) == 8
    assert max(found.values()) < 5e-5, {name: error for name, error in found.items() if error >= 5e-5}


def test_ranges_are_found_inside_shard_map(report):
    found = report["calibrated in shard_map"]
    assert len(found) == 2 * 5
    for name, (got, want) in found.items():
        assert abs(got - want) < 1e-6, name
