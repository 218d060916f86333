"""Stop and go on: killed, told to stop, moved to other devices, damaged; on real runs in their own processes."""

import json
import shutil
import signal
import time

import pytest

# Twelve epochs of a very small network on digits: 253 steps of 64, a checkpoint every two epochs (42 steps).
WORDS = (
    "digits", "--model", "ConvNet(widths=(16,), hidden=16)", "--epochs", "12", "--eval-every", "2",
    "--optimizer.ema", "0.9", "--optimizer.reestimate", "2", "--optimizer.learning-rate", "0.02",
    "--steps-per-call", "2",
)  # fmt: skip


def result(directory):
    return json.loads((directory / "result.json").read_text())


def steps_of(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing disturbed."""
    from jaxaccel import cli
    from jaxaccel.training.loop import train

    recipe, _, _ = cli.read("test", "", [*WORDS])
    return train(recipe, run=tmp_path_factory.mktemp("whole") / "digits")


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_killed_and_resumed_bit_for_bit(run_train, tmp_path, whole):
    directory = tmp_path / "runs" / "digits"
    process = run_train(*WORDS, wait=False)
    wait_for(lambda: (directory / "checkpoints" / "84").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert steps_of(directory)[-1] < 253, "it ended before it was killed"
    code, out, err = run_train(*WORDS, "--resume")
    assert code == 0, err
    assert "resuming digits at step" in out
    assert result(directory)["state_sha256"] == whole.summary["state_sha256"]
    assert result(directory)["eval"] == whole.summary["eval"]
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if row["kind"] == "eval"]
    assert evaluated == [42, 84, 126, 168, 210, 253]  # each once


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(run_train, tmp_path, whole):
    directory = tmp_path / "runs" / "digits"
    process = run_train(*WORDS, wait=False)
    wait_for(lambda: (directory / "checkpoints" / "42").exists(), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "stopped at step" in out and "--resume" in out.splitlines()[-1]
    assert not result(directory)["finished"]
    code, out, err = run_train(*WORDS, "--resume")
    assert code == 0, err
    assert result(directory)["finished"]
    assert result(directory)["state_sha256"] == whole.summary["state_sha256"]


@pytest.mark.slow
def test_one_device_then_four(run_train, tmp_path, whole):
    directory = tmp_path / "runs" / "digits"
    process = run_train(*WORDS, wait=False)
    wait_for(lambda: (directory / "checkpoints" / "84").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, _, err = run_train(*WORDS, "--resume", devices=4)
    assert code == 0, err
    assert result(directory)["device_count"] == 4
    # The same examples with the same augmentation; sums over four devices round differently.
    losses = [
        [r["loss"] for r in map(json.loads, (d / "metrics.jsonl").open()) if r["kind"] == "eval"]
        for d in (directory, whole.directory)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def damaged(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_passed_over(run_train, tmp_path, whole):
    directory = tmp_path / "runs" / "digits"
    shutil.copytree(whole.directory, directory)
    newest, before = steps_of(directory)[-1], steps_of(directory)[-2]
    damaged(largest(directory / "checkpoints" / str(newest)))
    shutil.copytree(
        directory / "checkpoints" / str(before), directory / "checkpoints" / "250.orbax-checkpoint-tmp"
    )
    code, out, err = run_train(*WORDS, "--resume")
    assert code == 0, err
    assert f"checkpoints/{newest} is damaged and passed over" in out
    assert f"resuming digits at step {before}" in out
    assert result(directory)["state_sha256"] == whole.summary["state_sha256"]
    # Nothing whole is left: say so, and touch nothing.
    for step in steps_of(directory):
        damaged(largest(directory / "checkpoints" / str(step)))
    code, _, err = run_train(*WORDS, "--resume")
    assert code == 2
    assert "all checkpoints in" in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(run_train, tmp_path, whole):
    forked = ("--name", "fork", "--epochs", "0.05", "--optimizer.learning-rate", "1e-9")
    code, _, err = run_train(*WORDS, *forked, "--init-from", whole.directory)
    assert code == 0, err
    accuracy = result(tmp_path / "runs" / "fork")["eval"]["accuracy"]
    assert accuracy == pytest.approx(whole.summary["eval"]["accuracy"], abs=0.02)
    assert accuracy > 0.8
    other = ("digits", "--model", "ConvNet(widths=(24,), hidden=16)", "--name", "other")
    code, _, err = run_train(*other, "--init-from", whole.directory)
    assert code == 2
    assert "is of another model" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs" / "other" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_resume_needs_the_same_recipe(run_train, tmp_path, whole):
    directory = tmp_path / "runs" / "digits"
    shutil.copytree(whole.directory, directory)
    code, _, err = run_train(*WORDS, "--optimizer.learning-rate", "0.1", "--resume")
    assert code == 2
    assert "optimizer.learning_rate = 0.02" in err and "0.1" in err and len(err.splitlines()) == 1
    code, _, err = run_train(*WORDS)
    assert code == 2
    assert "--resume" in err and "--overwrite" in err
    assert result(directory)["state_sha256"] == whole.summary["state_sha256"]  # nothing was lost


@pytest.mark.slow
def test_a_run_killed_before_its_result_writes_it_on_resume(run_train, tmp_path, whole):
    directory = tmp_path / "runs" / "digits"
    shutil.copytree(whole.directory, directory)
    (directory / "result.json").unlink()
    code, _, err = run_train(*WORDS, "--resume")
    assert code == 0, err
    assert result(directory)["finished"]
    assert result(directory)["eval"] == pytest.approx(whole.summary["eval"])
    assert result(directory)["state_sha256"] == whole.summary["state_sha256"]
