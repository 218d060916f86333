"""The processes of one job find each other: by the environment's own words, or by those of its launcher."""

import dataclasses
import os

import jax

from jaxaccel.errors import UserError

HEARTBEAT_SECONDS = 25
"""Without a sign of life for so long JAX ends the others; `jaxaccel.distributed.peers` is sooner, where its connections
work."""


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A program that starts several tasks, and the variables by which a task knows that it is one of them."""

    name: str
    count: str
    """Number of tasks; empty where no variable has it."""
    index: str
    """Number of this one."""
    also: tuple[str, ...] = ()
    """What else must be there: a batch script of SLURM has the count, and is one process all the same."""


LAUNCHERS = (
    Launcher("SLURM", "SLURM_NTASKS", "SLURM_PROCID", ("SLURM_STEP_NODELIST",)),
    Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    Launcher("MPI", "PMI_SIZE", "PMI_RANK"),
    Launcher("Kubernetes", "", "JOB_COMPLETION_INDEX", ("KUBERNETES_SERVICE_HOST",)),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """This process, as its launcher counts it."""

    launcher: str
    index: int
    count: int | None
    """None where the environment does not say it."""

    def __str__(self) -> str:
        of = "" if self.count is None else f" of {self.count}"
        return f"task {self.index}{of} of {self.launcher}"


def join_processes() -> int:
    """Joins the processes of one job; their number.

    ``JAX_COORDINATOR_ADDRESS`` with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` says who belongs together. Without it
    JAX finds out by itself on the hosts of a TPU pod, and for tasks of SLURM, Open MPI or Kubernetes.
    ``JAX_NUM_PROCESSES=1`` lets each task train alone.

    Raises:
      UserError: a launcher started several tasks, and they cannot be joined.
    """
    if jax.distributed.is_initialized() or os.environ.get("JAX_NUM_PROCESSES") == "1":
        return jax.process_count()
    named = bool(os.environ.get("JAX_COORDINATOR_ADDRESS"))
    task = None if named else task_of_launcher()
    if not (named or task or _in_pod()):
        return jax.process_count()
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            num_processes=_integer("JAX_NUM_PROCESSES"), process_id=_integer("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
    except Exception as error:  # JAX raises ValueError, RuntimeError and what its clusters' clients raise
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(f"{task or 'this process'} cannot join the others ({reason}): {_TELL}") from error
    if task and task.count not in (None, jax.process_count()):
        raise UserError(f"{task} has joined {jax.process_count()} processes only: {_TELL}")
    return jax.process_count()


_TELL = (
    "set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each, or JAX_NUM_PROCESSES=1 to "
    "let each train alone"
)


def task_of_launcher() -> Task | None:
    """What the environment says of this process; None where it is the only one."""
    for launcher in LAUNCHERS:
        if not all(name in os.environ for name in (launcher.index, *launcher.also)):
            continue
        count = _integer(launcher.count) if launcher.count else None
        if count is None or count > 1:
            return Task(launcher.name, _integer(launcher.index) or 0, count)
    return None


def _in_pod() -> bool:
    """Whether this is one of several hosts of a TPU pod."""
    return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") and os.environ.get("JAX_PLATFORMS") != "cpu"


def _integer(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"the environment variable {name} must be a whole number, got {text!r}") from None
