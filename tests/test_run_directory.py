"""What a run directory promises: reading never harms it, no damage goes unnoticed, one trainer at a time."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxaccel import saved
from jaxaccel.checkpoint import Checkpoints, restore
from jaxaccel.errors import UserError
from jaxaccel.saved import read_state, read_weights


def state(value):
    return {
        "params": {"w": kernel(value), "b": jax.numpy.full(3, value, jax.numpy.bfloat16)},
        "average": None,
        "opt_state": {"key": jax.random.key(int(value)), "m": np.full(5, value, np.float32)},
        "step": np.int32(value),
    }


def kernel(value):
    return np.random.default_rng(int(value)).normal(size=(64, 64)).astype(np.float32)


SHAPES = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, state(0)))
HERE = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), SHAPES)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of the steps 1 to 3, of which 2 is the best one."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=3)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6)):
        checkpoints.save(step, state(step), {"accuracy": accuracy, "loss": 1 - accuracy})
    checkpoints.close()
    return tmp_path / "run"


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def flip(path, wanted=None):
    """Flips one bit in the middle of a file, or of where `wanted` stands in it."""
    data = bytearray(path.read_bytes())
    data[data.index(wanted) if wanted else len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(directory):
    return max(
        (path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def test_the_newest_and_the_best_are_kept_and_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6), (4, 0.7)):
        checkpoints.save(step, state(step), {"accuracy": accuracy})
    checkpoints.close()
    assert saved.steps(tmp_path / "run" / "checkpoints") == [2, 3, 4]
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)  # as another process finds it
    checkpoints.save(5, state(5))  # stopped: no evaluation
    checkpoints.save(6, state(6), {"accuracy": 0.8})
    checkpoints.close()
    assert saved.steps(tmp_path / "run" / "checkpoints") == [2, 5, 6]
    assert saved.best(tmp_path / "run" / "checkpoints", "accuracy") == 2


@pytest.mark.parametrize(
    ("how", "step"),
    [
        ({}, 2),
        ({"which": "last"}, 3),
        ({"which": 1}, 1),
        ({"metric": "loss", "better": "lower"}, 2),
        ({"metric": "loss"}, 1),
        ({"metric": "unknown"}, 3),
    ],
)  # fmt: skip
def test_weights_are_read_by_score_or_step(run, how, step, monkeypatch):
    before = contents(run)
    monkeypatch.chdir(run.parent)
    found = read_weights(Path("run"), **how)
    assert found.step == step
    assert found.arrays.keys() == {"params/w", "params/b"}
    np.testing.assert_array_equal(found.arrays["params/w"], kernel(step))
    assert found.arrays["params/b"].dtype == jax.numpy.bfloat16
    assert contents(run) == before


def test_lower_is_better(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1, metric="loss", better="lower")
    for step, loss in ((1, 3.0), (2, -1.0), (3, float("nan")), (4, 2.0)):
        checkpoints.save(step, state(step), {"loss": loss})
    checkpoints.close()
    assert saved.steps(tmp_path / "run" / "checkpoints") == [2, 4]
    assert read_weights(tmp_path / "run", "loss", "lower").step == 2


def test_a_state_is_read_bit_for_bit(run):
    step, found = read_state(run / "checkpoints", SHAPES, HERE)
    assert step == 3
    for now, then in zip(jax.tree.leaves(found), jax.tree.leaves(state(3)), strict=True):
        assert now.dtype == then.dtype
        data = [
            jax.random.key_data(x) if now.shape == () and now.dtype != np.int32 else x for x in (now, then)
        ]
        np.testing.assert_array_equal(*data)


def test_a_flipped_bit_in_the_newest_checkpoint_is_noticed(run, capsys):
    flip(largest(run / "checkpoints" / "3" / "default"))
    assert read_weights(run, which="last").step == 2
    assert "checkpoints/3 is damaged and passed over: " in capsys.readouterr().out
    assert saved.steps(run / "checkpoints") == [1, 2, 3]  # reading moves nothing
    assert restore(run / "checkpoints", SHAPES, HERE)[0] == 2
    assert saved.steps(run / "checkpoints") == [1, 2]
    assert (run / "damaged" / "3").is_dir()
    with pytest.raises(UserError, match="no whole checkpoint of step 3: there is 1, 2"):
        read_weights(run, which=3)


def test_a_changed_metric_does_not_make_another_checkpoint_the_best(run):
    metrics = run / "checkpoints" / "1" / "metrics" / "metrics"
    metrics.write_text(metrics.read_text().replace("0.5", "0.99", 1))
    assert read_weights(run).step == 2


@pytest.mark.parametrize("wanted", [b"params/w", b'": "', b"process"])
def test_damage_in_the_digests_is_damage(run, wanted):
    file = run / "checkpoints" / "3" / "digests" / "process_0.json"
    if wanted == b"process":
        file.unlink()
    else:
        flip(file, wanted)
    assert read_weights(run, which="last").step == 2


def test_a_checkpoint_without_digests_is_said_to_be_so(run, capsys):
    shutil.rmtree(run / "checkpoints" / "3" / "digests")
    assert read_weights(run, which="last").step == 3
    (said,) = capsys.readouterr().out.splitlines()
    assert said.endswith("checkpoints/3 cannot be verified, it has no digests: it is taken as it is")


def test_reading_while_the_trainer_removes_checkpoints(run, monkeypatch):
    """The trainer removes the best checkpoint, and saves another one, between looking for it and reading it."""
    read, removed = saved.read, []

    def slow(checkpoint, *rest, **how):
        if not removed:
            removed.append(checkpoint.name)
            shutil.rmtree(checkpoint)
        return read(checkpoint, *rest, **how)

    monkeypatch.setattr(saved, "read", slow)
    said = []
    assert read_weights(run, say=said.append).step == 3
    assert removed == ["2"] and not said


def test_nothing_to_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no directory of a run with checkpoints"):
        read_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
        read_weights(tmp_path)
