"""What a run directory promises: reading never harms it, no damage goes unnoticed, one trainer at a time."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.files import disk_error, read_json
from jaxaccel.errors import UserError
from jaxaccel.training import lock, run_directory, run_log, saved_checkpoints
from jaxaccel.training.checkpoint import Checkpoints, flatten_by_path, restore
from jaxaccel.training.recipe_file import load_recipe
from jaxaccel.training.saved_checkpoints import read_state, read_weights


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
    assert saved_checkpoints.list_steps(tmp_path / "run" / "checkpoints") == [2, 3, 4]
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)  # as another process finds it
    checkpoints.save(5, state(5))  # stopped: no evaluation
    checkpoints.save(6, state(6), {"accuracy": 0.8})
    checkpoints.close()
    assert saved_checkpoints.list_steps(tmp_path / "run" / "checkpoints") == [2, 5, 6]
    assert saved_checkpoints.find_best(tmp_path / "run" / "checkpoints", "accuracy") == 2


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
    assert saved_checkpoints.list_steps(tmp_path / "run" / "checkpoints") == [2, 4]
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
    assert saved_checkpoints.list_steps(run / "checkpoints") == [1, 2, 3]  # reading moves nothing
    assert restore(run / "checkpoints", SHAPES, HERE)[0] == 2
    assert saved_checkpoints.list_steps(run / "checkpoints") == [1, 2]
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
    read, removed = saved_checkpoints.read, []

    def slow(checkpoint, *rest, **how):
        if not removed:
            removed.append(checkpoint.name)
            shutil.rmtree(checkpoint)
        return read(checkpoint, *rest, **how)

    monkeypatch.setattr(saved_checkpoints, "read", slow)
    said = []
    assert read_weights(run, say=said.append).step == 3
    assert removed == ["2"] and not said


def test_nothing_to_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no directory of a run with checkpoints"):
        read_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
        read_weights(tmp_path)


# ---- one writer ----------------------------------------------------------------------------------------------


def python(program, *words, **how):
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)


HOLD = "import sys, time; from pathlib import Path; from jaxaccel.training import lock\n"
HOLD += "with lock.hold_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path):
    directory = tmp_path / "new" / "run"
    with python(HOLD, directory) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=f"run is in use, process {other.pid} on .* writes to it"
        ) as error:
            lock.hold_lock(directory).__enter__()
        assert "\n" not in str(error.value) and "run=DIR" in str(error.value)
        assert error.value.as_flags().endswith("--run DIR")
        other.kill()
        other.wait()
        with lock.hold_lock(directory), pytest.raises(UserError, match=f"process {os.getpid()} on"):
            lock.hold_lock(directory).__enter__()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_lock_stays_where_the_directory_was(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (tmp_path / "link").symlink_to(directory)
    with lock.hold_lock(directory):
        directory.rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="in use"):
            lock.hold_lock(tmp_path / "link").__enter__()


def test_a_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with lock.hold_lock(tmp_path / "run"):
        assert "has no locks: take care that nothing else writes to" in caplog.text


# ---- what is replaced ------------------------------------------------------------------------------------------


RECIPE = load_recipe("digits")


def finished(directory):
    with run_directory.claim_run(directory, RECIPE) as claim:
        claim.begin()
        checkpoint(directory)
        (directory / "result.json").write_text("{}")
    return contents(directory)


def checkpoint(directory):
    (directory / "checkpoints" / "7").mkdir(parents=True)


def test_nothing_changes_before_the_replacement_begins(tmp_path):
    directory = tmp_path / "run"
    before = finished(directory)
    with pytest.raises(
        UserError, match="holds a run already: go on with resume=True, replace it with overwrite=True"
    ):
        run_directory.claim_run(directory, RECIPE).__enter__()
    with pytest.raises(ZeroDivisionError), run_directory.claim_run(directory, RECIPE, overwrite=True):
        assert contents(directory) == before
        raise ZeroDivisionError
    with (
        pytest.raises(ZeroDivisionError),
        run_directory.claim_run(directory, RECIPE, overwrite=True) as claim,
    ):
        claim.begin()
        assert not (directory / "result.json").exists()
        raise ZeroDivisionError  # before its first checkpoint
    assert contents(directory) == before
    with run_directory.claim_run(directory, RECIPE, overwrite=True) as claim:
        claim.begin()
        claim.settle()
        assert (tmp_path / ".run.replaced").is_dir()
        checkpoint(directory)
        claim.settle()
        assert not (tmp_path / ".run.replaced").exists()
    assert not (directory / "result.json").exists()
    assert list(tmp_path.iterdir()) == [directory]


KILLED = """
import os, shutil, sys
from pathlib import Path
from jaxaccel.training.directory_swap import Swap
calls = int(sys.argv[2])
def counted(change):
    def call(*words, **how):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), 9)
        return change(*words, **how)
    return call
Path.rename, Path.mkdir, shutil.rmtree = map(counted, (Path.rename, Path.mkdir, shutil.rmtree))
swap = Swap(Path(sys.argv[1]), "recipe.json", lambda directory: (directory / "checkpoints" / "7").exists())
swap.end()
swap.begin(lambda directory: (directory / "recipe.json").write_text("new"))
os.kill(os.getpid(), 9)
"""


def test_a_run_stands_again_after_a_replacement_that_was_killed(tmp_path):
    """Wherever it was killed: before each change of the file system in turn, also while it was brought back."""
    directory = tmp_path / "run"
    before = finished(directory)
    for calls in (1, 2, 3, 4, 99, 1, 99, 2, 99, 3):
        with python(KILLED, directory, calls) as process:
            process.wait()
        assert process.returncode == -signal.SIGKILL
    for again in range(3):  # tries that do not replace it, the first of which brings it back
        with pytest.raises(UserError, match="holds a run already"):
            run_directory.claim_run(directory, RECIPE).__enter__()
        assert contents(directory) == before, again
    assert list(tmp_path.iterdir()) == [directory]


def test_nothing_of_others_is_deleted(tmp_path):
    directory, aside = tmp_path / "run", tmp_path / ".run.replaced"
    before = finished(directory)
    directory.rename(aside)
    directory.mkdir()
    (directory / "thesis.txt").write_text("three years of work")
    with pytest.raises(UserError, match="is no run of jaxaccel and will not be deleted"):
        run_directory.claim_run(directory, RECIPE, overwrite=True).__enter__()
    assert (directory / "thesis.txt").exists()
    assert contents(aside).values() and len(contents(aside)) == len(before)


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nowhere"])
def test_where_no_run_can_be_is_told_at_once(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is a file|cannot write in .*: choose another place with run=DIR"):
        run_directory.claim_run(tmp_path / place, RECIPE).__enter__()


def test_a_full_disk_is_told_as_what_it_is(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "recipe.json")

    before = finished(tmp_path / "run")
    monkeypatch.setattr(run_directory, "write_json", full)
    directory = tmp_path / "run"
    with (
        pytest.raises(OSError, match="No space"),
        run_directory.claim_run(directory, RECIPE, overwrite=True) as claim,
    ):
        claim.begin()
    assert contents(directory) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


# ---- damage ----------------------------------------------------------------------------------------------------


def test_a_damaged_line_loses_itself_alone(tmp_path):
    row = {"kind": "train", "step": 1, "epoch": 0.5, "loss": None}
    bad = [
        b"{",
        b"[1]",
        b"null",
        b'{"kind": "eval"}',
        b'{"kind": "train", "step": "2", "epoch": 1}',
        b"\xff\xfe",
        b"",
    ]
    bad += [b'{"kind": "train", "step": 2, "epoch": 1, "loss": NaN}', b"[" * 100_000, b'{"kind": "tr\x00']
    good = [row | {"step": step} for step in range(len(bad) + 1)]
    lines = [json.dumps(good[0]).encode()]
    for broken, whole in zip(bad, good[1:], strict=True):
        lines += [broken, json.dumps(whole).encode()]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert run_log.read(tmp_path) == good


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_recipe_is_one_line(tmp_path, content):
    (tmp_path / "recipe.json").write_bytes(content)
    for reads in (
        lambda: read_json(tmp_path / "recipe.json"),
        lambda: run_directory.check_same(tmp_path, RECIPE),
    ):
        with pytest.raises(UserError, match=r"recipe.json was not written by jaxaccel, or is damaged"):
            reads()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE])
def test_what_a_disk_answers_is_known_by_number_and_by_text(code):
    there = Path("run")
    assert disk_error(OSError(code, "so"), there).errno == code
    assert (
        disk_error(
            ValueError(f'INTERNAL: Error writing "d/a": {os.strerror(code)} [OS error {code}]'), there
        ).errno
        == code
    )
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = ValueError(f"... {os.strerror(code)}")
    assert disk_error(wrapped, there).filename == "run"
    assert disk_error(ValueError("shapes do not match"), there) is None


@pytest.mark.parametrize("by_another", [False, True])
def test_a_directory_that_goes_while_it_is_written_to_is_told(run, by_another):
    checkpoints = Checkpoints(run / "checkpoints")
    shutil.rmtree(run)
    if by_another:
        (run / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="has been removed or renamed while it was written to"):
        checkpoints.save(4, state(4))
    assert not run.exists()


# ---- processes -------------------------------------------------------------------------------------------------

CHILD = "import sys, time; from jaxaccel.data import child_processes as c; c.POLL_SECONDS = 0.05\n"
CHILD += "c.end_with(int(sys.argv[1]))\n"
CHILD += "print('watching', flush=True); time.sleep(60)"
PARENT = "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]).wait()"


STREAMS = """
import time
import numpy as np
from jaxaccel.training.stream import Batches, stream
class Source:
    features = {}
    def __getitems__(self, indices):
        return [{"x": np.float32(i)} for i in indices]
def order(step):
    return {"index": np.arange(4) + 4 * step}
batches = stream(Batches(Source(), lambda example: example, order, range(100_000)), workers=1)
next(batches)
print("streaming", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("words", "said"), [([PARENT, CHILD], "watching\n"), ([STREAMS], "streaming\n")], ids=["any", "streaming"]
)
def test_a_worker_ends_with_a_trainer_that_is_killed(words, said):
    with python(*words) as process:
        assert process.stdout.readline() == said
        process.kill()
        assert process.communicate(timeout=100)[0] == ""  # the worker held it open, and has gone


# ---- a whole run -----------------------------------------------------------------------------------------------


def test_a_run_holds_its_lock_and_is_read_without_it(tmp_path):
    directory = tmp_path / "run"
    recipe = dataclasses.replace(
        RECIPE, model=functools.partial(models.ConvNet, widths=(4,), hidden=0), epochs=0.2, eval_every=0.1
    )
    with lock.hold_lock(directory), pytest.raises(UserError, match="run is in use"):
        ja.train(recipe, run=directory)
    first = ja.train(recipe, run=directory)
    before = contents(directory)
    with lock.hold_lock(directory):  # as if it trained still
        again = ja.train(recipe, run=directory, resume=True)
        assert ja.train(recipe, run=tmp_path / "other", init_from=directory).summary["finished"]
    assert again.summary == json.loads((directory / "result.json").read_text())
    assert contents(directory) == before
    for path, array in read_weights(directory, which="last").arrays.items():
        if path.startswith("params/"):
            np.testing.assert_array_equal(array, flatten_by_path({"params": again.state.params})[path])
    # What can be computed anew is.
    (directory / "result.json").write_text("{")
    (directory / "curves.png").unlink()
    third = ja.train(recipe, run=directory, resume=True)
    assert third.summary["state_sha256"] == first.summary["state_sha256"]
    assert third.summary["eval"] == first.summary["eval"]
    assert (directory / "curves.png").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]
