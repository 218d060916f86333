"""Devices that are not attached to this machine, for which the real compilers compile all the same.

XLA's compilers for GPUs and TPUs run on any Linux host where their packages are installed. What they compile can be
read, not run. A GPU is described to the compiler by the numbers of its data sheet; nothing is tuned by timing, so tile
sizes are those of XLA's tables, while operations, types, errors and memory are real.

Sources of the numbers: the table of features by compute capability of the CUDA C++ Programming Guide
(https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications), and the data sheets of
the GPUs, of which `jaxaccel.advisor.chips` has the links.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from jaxaccel.errors import UserError

# libtpu looks for the machine that it is on and reports each thing it does not find.
_WITHOUT_TPU = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_OLDEST_CUDNN = "9.10.0"
"""What is assumed where cuDNN is not installed as a Python package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """What XLA's compiler is told about a GPU."""

    name: str
    """As CUDA reports it."""
    capability: tuple[int, int]
    """Compute capability."""
    cores: int
    """Streaming multiprocessors."""
    float32_units: int
    """Of each core."""
    threads: int
    """That one core can hold."""
    shared_memory: int
    """Bytes of each core; a block of threads may have 1 KiB less, and on a T4 as much."""
    cache: int
    """Bytes of the L2 cache."""
    clock: float
    """GHz, boosted."""
    memory: int
    """Bytes of main memory, as its driver reports them."""
    bandwidth: float
    """Bytes a second between the cores and main memory."""


GPUS: Mapping[str, Gpu] = {
    "h200": Gpu(
        name="NVIDIA H200", capability=(9, 0), cores=132, float32_units=128, threads=2048,
        shared_memory=228 * 2**10, cache=50 * 2**20, clock=1.98, memory=143_771 * 2**20, bandwidth=4.8e12,
    ),
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3", capability=(9, 0), cores=132, float32_units=128, threads=2048,
        shared_memory=228 * 2**10, cache=50 * 2**20, clock=1.98, memory=81_008 * 2**20, bandwidth=3.352e12,
    ),
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB", capability=(8, 0), cores=108, float32_units=64, threads=2048,
        shared_memory=164 * 2**10, cache=40 * 2**20, clock=1.41, memory=81_158 * 2**20, bandwidth=2.039e12,
    ),
    "l4": Gpu(
        name="NVIDIA L4", capability=(8, 9), cores=58, float32_units=128, threads=1536,
        shared_memory=100 * 2**10, cache=48 * 2**20, clock=2.04, memory=22_490 * 2**20, bandwidth=0.3e12,
    ),
    "t4": Gpu(
        name="Tesla T4", capability=(7, 5), cores=40, float32_units=64, threads=1024,
        shared_memory=64 * 2**10, cache=4 * 2**20, clock=1.59, memory=14_912 * 2**20, bandwidth=0.32e12,
    ),
}  # fmt: skip
TPUS: Mapping[str, str] = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}
"""The smallest topology of each TPU."""
NAMES: Sequence[str] = (*GPUS, *TPUS)


def find_devices(name: str) -> list[Any]:
    """Finds devices that are not attached; programs can be compiled for them, by a mesh of them.

    Args:
      name: a GPU of `GPUS` or a TPU of `TPUS`, which is one chip; ``h100:8`` are that many GPUs of one host, and
        ``v5e:2x2`` is a whole topology. The devices of ``v4`` are the two cores of each chip.

    Raises:
      UserError: there is no such device, or its compiler is not installed.
    """
    kind, colon, size = name.partition(":")
    if kind in GPUS:
        if colon and not re.fullmatch(r"[1-9]\d?", size):
            raise UserError(f"no GPUs {name!r}: write {kind}, or {kind}:8 for eight of them on one host")
        return list(_find_gpus(kind, int(size or 1)))
    if kind not in TPUS:
        raise UserError(f"no device {name!r}: choose one of {', '.join(NAMES)}")
    devices = _find_tpus(name if size else f"{kind}:{TPUS[kind]}")
    return list(devices if size else devices[:1])


@functools.cache
def _find_gpus(kind: str, count: int) -> Sequence[Any]:
    plugin = find_gpu_compiler()
    if not plugin:
        raise UserError(f"compiling for {kind} needs XLA's compiler for GPUs: pip install 'jaxaccel[cuda]'")
    find = functools.partial(
        topologies.get_topology_desc,
        kind,
        platform="cuda",
        topology=f"1x1x{count}",
        target_config=describe_gpu(GPUS[kind]),
    )
    if not Path(
        "/dev/nvidiactl"
    ).exists():  # where no driver is, JAX refuses the plugin that has the compiler
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        try:
            return find().devices
        except NotImplementedError:  # JAX had refused it before
            importlib.import_module(plugin).initialize()
            return find().devices
    except (RuntimeError, ValueError) as error:
        raise UserError(f"XLA cannot compile for {kind} here: {str(error).splitlines()[0]}") from error


def find_gpu_compiler() -> str:
    """Finds the plugin of JAX that has XLA's compiler for GPUs; empty where none is installed."""
    try:
        names = [f"jax_plugins.xla_cuda{n}" for n in (13, 12)]
        return next((name for name in names if importlib.util.find_spec(name)), "")
    except ModuleNotFoundError:  # no plugin at all: the package around them is not there
        return ""


@functools.cache
def _find_tpus(topology: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'jaxaccel[tpu]'")
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        for name, value in _WITHOUT_TPU.items():
            os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(f"no TPU topology {topology!r}: {str(error).splitlines()[0]}") from error


def describe_gpu(gpu: Gpu) -> str:
    """Describes a GPU as XLA reads it: a ``stream_executor.GpuTargetConfigProto`` in text form."""
    major, minor = gpu.capability
    # Tensor cores of compute capability 9.0 are reached by instructions of that architecture alone.
    features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    reserved = 0 if gpu.capability < (8, 0) else 2**10
    dnn = _version("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", default=_OLDEST_CUDNN)
    toolkit = _version("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", default="13.0.0")
    dnn_numbers = dnn.split(".")
    return f"""
gpu_device_info {{
  name: "{gpu.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.float32_units}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {int(gpu.bandwidth)}
  device_memory_size: {gpu.memory}
  l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {gpu.shared_memory - reserved}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {gpu.threads}
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  dnn_version: "{dnn}"
  driver_version: "{toolkit}"
  runtime_version: "{toolkit}"
  compile_time_toolkit_version: "{toolkit}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {dnn_numbers[0]} minor: {dnn_numbers[1]} patch: {dnn_numbers[2]} }}
device_description_str: "{gpu.name}"
"""


def _version(*packages: str, default: str) -> str:
    """The version of the first of `packages` that is installed, as three numbers."""
    for package in packages:
        try:
            return ".".join(importlib.metadata.version(package).split(".")[:3])
        except importlib.metadata.PackageNotFoundError:
            continue
    return default
