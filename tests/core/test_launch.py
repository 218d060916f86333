"""Tasks of launchers are joined or refused, and processes notice each other's end."""

import socket
import threading

import jax
import pytest

from jaxaccel.core import launch
from jaxaccel.distributed import peers
from jaxaccel.errors import UserError

SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}


@pytest.fixture
def environment(monkeypatch):
    names = {name for one in launch.LAUNCHERS for name in (one.count, one.index, *one.also) if name}
    for name in (
        *names,
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ({}, None),
        (SLURM, "task 1 of 4 of SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script, before srun
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, "task 2 of 3 of Open MPI"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "task 0 of 2 of MPI"),
        ({"JOB_COMPLETION_INDEX": "5", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "task 5 of Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_what_the_environment_says(environment, values, task):
    environment(values)
    found = launch.task_of_launcher()
    assert (found and str(found)) == task


def test_tasks_that_cannot_be_joined_do_not_train_side_by_side(environment, monkeypatch):
    def fails(**_):
        raise RuntimeError("Could not parse coordinator IP address")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    environment({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"})
    with pytest.raises(
        UserError, match=r"task 2 of 3 of Open MPI cannot join the others \(Could not parse .* set JAX_"
    ):
        launch.join_processes()


def test_tasks_that_joined_too_few_are_refused(environment, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    environment(SLURM)
    with pytest.raises(UserError, match="task 1 of 4 of SLURM has joined 1 processes only"):
        launch.join_processes()


def test_tasks_may_train_alone(environment, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    environment(SLURM | {"JAX_NUM_PROCESSES": "1"})
    assert launch.join_processes() == 1


def test_a_number_that_is_none(environment):
    environment(SLURM | {"SLURM_NTASKS": "many"})
    with pytest.raises(UserError, match="SLURM_NTASKS must be a whole number, got 'many'"):
        launch.join_processes()


# ---- one that goes ------------------------------------------------------------------------------------------


@pytest.fixture
def watch(monkeypatch):
    """A watch of processes 1 and 2, by their ends of the connections, and what it told."""
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(peers, "_GRACE_SECONDS", 0.0)
    told, happened = [], threading.Event()

    def lost(rank):
        told.append(rank)
        happened.set()

    watch, ends = peers.Watch(lost), {}
    for rank in (1, 2):
        ours, ends[rank] = socket.socketpair()
        watch._keep(rank, ours)
    yield watch, ends, told, happened
    watch.leave()


def test_a_killed_process_is_named_to_all(watch):
    _, ends, told, happened = watch
    ends[1].close()
    assert happened.wait(5) and told == [1]
    assert peers._read_whole(ends[2], 5) == b"x\0\0\0\1"


def test_a_silent_process_has_gone(watch):
    _, ends, told, happened = watch
    beating = threading.Timer(0.3, lambda: ends[2].sendall(b"b"))
    beating.start()
    assert happened.wait(5) and told == [1]


def test_what_process_0_tells_is_believed(watch):
    _, ends, told, happened = watch
    ends[2].sendall(b"x\0\0\0\7")
    assert happened.wait(5) and told == [7]


def test_good_bye_is_no_loss(watch):
    _, ends, told, happened = watch
    for end in ends.values():
        end.sendall(b"q")
        end.close()
    assert not happened.wait(1.5) and told == []


def test_after_leaving_nobody_is_missed(watch):
    watch, ends, told, happened = watch
    watch.leave()
    assert peers._read_whole(ends[1], 1) == b"q"
    ends[1].close()
    assert not happened.wait(0.5) and told == []
