"""Two processes on one machine, joined over loopback, train as one with two devices does."""

import json
import signal
import socket
import time

import pytest

WORDS = (
    "digits", "--model", "ConvNet(widths=(8,), hidden=16)", "--epochs", "3", "--eval-every", "1",
    "--steps-per-call", "1",
)  # fmt: skip


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(run_train, *words):
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [run_train(*words, wait=False, env=address | {"JAX_PROCESS_ID": str(i)}) for i in range(2)]


def finish(processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    return outputs


def losses(directory):
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("feed", ["resident", pytest.param("stream", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(run_train, tmp_path, feed):
    outputs = finish(start(run_train, *WORDS, "--data.feed", feed, "--run", "two"))
    assert "epoch" not in outputs[1][0]  # only the first one speaks
    code, _, err = run_train(*WORDS, "--run", "one", devices=2)
    assert code == 0, err
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (result["process_count"], result["device_count"], result["feed"]) == (2, 2, feed)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_both_come_to_the_same_batch_size(run_train, tmp_path):
    outputs = finish(start(run_train, *WORDS, "--epochs", "1", "--batch-size", "auto", "--run", "two"))
    assert "batch size 1024: the largest power of two within the 1,347 training examples" in outputs[0][0]
    assert "batch size" not in outputs[1][0]  # only the first one speaks
    assert json.loads((tmp_path / "two" / "recipe.json").read_text())["recipe"]["batch_size"] == 1024


@pytest.mark.slow
def test_sigterm_stops_both_at_the_same_step(run_train, tmp_path):
    longer = (*WORDS, "--epochs", "60", "--run", "two")
    processes = start(run_train, *longer)
    end = time.monotonic() + 120
    while not (tmp_path / "two/checkpoints/42").exists():
        assert time.monotonic() < end and all(p.poll() is None for p in processes)
        time.sleep(0.1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = finish(processes)
    assert "stopped at step" in outputs[0][0]
    assert not json.loads((tmp_path / "two/result.json").read_text())["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_one_process_ends_the_other_in_one_line(run_train, tmp_path, number, victim):
    processes = start(run_train, *WORDS, "--epochs", "500", "--run", "two")
    end = time.monotonic() + 120
    while not (tmp_path / "two" / "metrics.jsonl").exists():
        assert time.monotonic() < end and all(p.poll() is None for p in processes)
        time.sleep(0.1)
    processes[victim].send_signal(number)
    _, said = processes[1 - victim].communicate(timeout=60)
    processes[victim].kill()
    assert processes[1 - victim].returncode == 2, said
    assert f"error: process {victim} of 2 has gone: see its own output" in said


@pytest.mark.slow
def test_other_options_in_one_process_are_refused(run_train, tmp_path):
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        run_train(*WORDS, "--seed", str(5 * i), wait=False, env=address | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 2
        assert "error: process 1 was started with another --seed than process 0" in said
