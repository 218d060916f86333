"""What surrounds JAX in the process: compile cache, host allocator, several processes, platform facts."""

import contextlib
import ctypes
import dataclasses
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxaccel.core.launch import join_processes

STACK = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What `setup` did."""

    allocator: str
    """How glibc's allocator was set, or why it was not."""
    cache: str
    """Directory of the persistent compile cache, or why there is none."""
    processes: int
    """How many processes train together."""


def setup() -> Runtime:
    """Prepares this process for training; safe to call again. Environment variables switch the parts off:

    ``JAXACCEL_ALLOCATOR=0`` leaves glibc's allocator alone, ``JAXACCEL_CACHE=0`` keeps no compile cache
    (or names its directory). Several processes of one job are joined (`jaxaccel.core.launch`).
    """
    threads_for_forced_devices()
    return Runtime(keep_freed_memory(), compile_cache(), join_processes())


def keep_freed_memory() -> str:
    """Tells glibc to keep the memory that programs free, rather than to give it back to the system.

    XLA:CPU allocates its temporaries anew for each execution. As glibc ships, large ones are fresh
    pages each time, and the kernel must clear each on first touch: for a small ConvNet's step that
    took more time than the arithmetic (`python -m benchmarks allocator`). All threads share one arena, unless
    ``MALLOC_ARENA_MAX`` says otherwise: those of their own hold 64 MB at most, and what is larger is mapped anew.
    """
    if os.environ.get("JAXACCEL_ALLOCATOR") == "0":
        return "left alone (JAXACCEL_ALLOCATOR=0)"
    if platform.libc_ver()[0] != "glibc":
        return "left alone (not glibc)"
    libc = ctypes.CDLL(None)
    # No threshold below which memory goes back: an int could name no more than 2 GiB, and the temporaries of a
    # ResNet-50's step on 16 images are more.
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**28}
    if "MALLOC_ARENA_MAX" not in os.environ:
        settings[_M_ARENA_MAX] = 1
    accepted = all(libc.mallopt(name, value) == 1 for name, value in settings.items())
    return "glibc keeps freed memory" if accepted else "glibc refused mallopt"


def threads_for_forced_devices() -> None:
    """Gives XLA:CPU enough threads where ``XLA_FLAGS`` forces several devices onto one CPU.

    A device that waits in an all-reduce holds a thread of a pool that is shared by all of them. With as many
    threads as devices, which is what XLA makes, the one device that the others wait for may find none left,
    and XLA ends the process after a minute. No effect once JAX's backend is up.
    """
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if forced and int(forced[1]) > 1:
        os.environ.setdefault("NPROC", str(4 * int(forced[1])))


def divide_cpu(independent: int) -> None:
    """Makes as many devices of the CPU as it has cores for `independent` equal parts of the work.

    A core that computes by itself waits for no other one at the end of each operation, and a program for some of the
    parts compiles sooner (`python -m benchmarks replicas`). For a process that does nothing else, and programs that
    do not communicate. No effect once JAX's backend is up, or where the environment says how many devices there are.

    At most eight: each has a copy of the data of its own.
    """
    said = any(name in os.environ for name in ("JAX_NUM_CPU_DEVICES", "JAX_COORDINATOR_ADDRESS"))
    said |= "device_count" in os.environ.get("XLA_FLAGS", "")
    own = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if independent == 1 or said or own > 0:  # the user's own setting stands
        return
    devices = max(n for n in range(1, min(cores(), independent, 8) + 1) if independent % n == 0)
    with contextlib.suppress(RuntimeError):  # the backend is up
        jax.config.update("jax_num_cpu_devices", devices)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_cache() -> str:
    """Keeps compiled programs on disk, so that the second start of a run does not compile."""
    wanted = os.environ.get("JAXACCEL_CACHE", "")
    if wanted == "0":
        return "none (JAXACCEL_CACHE=0)"
    own = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if own:  # the user's own setting stands
        return own
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    directory = Path(wanted) if wanted else base / "jaxaccel" / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"none ({error})"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return str(directory)


def device_memory(device: Any) -> int:
    """Bytes of memory of a device; on a CPU, its share of the machine's memory."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def free_memory(device: Any) -> int | None:
    """Bytes that programs may still take on a device; None where it does not say. On a CPU as `device_memory`.

    A GPU offers what JAX's allocator may take of it, three quarters unless ``XLA_PYTHON_CLIENT_MEM_FRACTION`` says
    otherwise, less what lives there already.
    """
    if device.platform == "cpu":
        return device_memory(device)
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the stack below it."""
    found = {"python": platform.python_version()}
    for name in ("jaxaccel", *STACK):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found


def find_processor() -> str:
    """The name of this machine's processor; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def git_commit(directory: Path) -> str | None:
    """The commit checked out in `directory`, with ``+changes`` where files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def peak_bytes(compiled: jax.stages.Compiled | None) -> int | None:
    """Device memory of one execution by the compiler's own count: arguments, results and temporaries.

    A TPU's compiler counts no temporaries beside its peak, a CPU's no peak: the larger of both counts.
    """
    memory = compiled.memory_analysis() if compiled else None
    if memory is None:
        return None
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0)
    return int(max(peak, parts - memory.alias_size_in_bytes))
