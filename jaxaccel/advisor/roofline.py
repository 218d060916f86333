"""How fast a chip could at best run a compiled program, also one for a device that is not attached.

The roofline model (Williams, Waterman, Patterson 2009, https://doi.org/10.1145/1498765.1498785): a program takes at
least its multiplications at the peak rate of their type, and at least its memory traffic at the peak bandwidth. Real
runs take longer. It serves to compare variants of one function, not to promise a time.

Peaks are those of dense matrices that the makers publish, of one chip:

- TPU: https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e. The matrix unit multiplies bfloat16; a
  float32 product takes one pass of it by default, 3 at precision ``high`` and 6 at ``highest``
  (https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision). v4 runs int8 at the rate of bfloat16.
- H100: https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (SXM, its figures "with
  sparsity" halved), and H200, which has the same cores and more bandwidth:
  https://www.nvidia.com/en-us/data-center/h200/; A100: https://www.nvidia.com/en-us/data-center/a100/ (SXM, 80 GB); L4:
  https://www.nvidia.com/en-us/data-center/l4/ (halved as well); T4: https://www.nvidia.com/en-us/data-center/tesla-t4/,
  which has neither bfloat16 nor TF32. Float32 is TF32 by default, and the vector units' float32 at ``highest``.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxaccel.core import hlo
from jaxaccel.core.unattached import find_devices
from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of one chip: operations a second, where a multiplication and an addition are two, and bandwidth."""

    name: str
    bfloat16: float
    """That of float32 where there are no units for it."""
    float16: float
    int8: float
    """Also of narrower integers."""
    float8: float
    """That of float16 where there are no units for it."""
    float32: float
    """At the default precision."""
    high: float
    """Float32 at precision ``high``."""
    highest: float
    """Float32 at precision ``highest``; also of wider types, whose rates nobody publishes."""
    bandwidth: float
    """Bytes a second between the chip and its main memory."""

    def rate(self, operation: hlo.Operation) -> float:
        """Operations a second of products of these types: the wider of the two decides."""
        dtype = max(operation.operand_dtypes, key=hlo.bits)
        if hlo.bits(dtype) <= 8:
            return self.float8 if any(d.startswith("f") for d in operation.operand_dtypes) else self.int8
        if hlo.bits(dtype) <= 16:
            return self.bfloat16 if "bf16" in operation.operand_dtypes else self.float16
        if hlo.bits(dtype) > 32 or not dtype.startswith("f"):
            return self.highest
        return {"high": self.high, "highest": self.highest}.get(operation.precision, self.float32)


def _tpu(name: str, bfloat16: float, int8: float, bandwidth: float) -> Chip:
    return Chip(
        name=name,
        bfloat16=bfloat16,
        float16=bfloat16,
        int8=int8,
        float8=bfloat16,
        float32=bfloat16,
        high=bfloat16 / 3,
        highest=bfloat16 / 6,
        bandwidth=bandwidth,
    )


CHIPS: Mapping[str, Chip] = {
    "v4": _tpu("v4", 275e12, 275e12, 1200e9),
    "v5e": _tpu("v5e", 197e12, 393e12, 819e9),
    "v5p": _tpu("v5p", 459e12, 918e12, 2765e9),
    "v6e": _tpu("v6e", 918e12, 1836e12, 1638e9),
    "h200": Chip(
        name="h200", bfloat16=989.5e12, float16=989.5e12, int8=1979e12, float8=1979e12,
        float32=494.5e12, high=494.5e12, highest=67e12, bandwidth=4800e9,
    ),
    "h100": Chip(
        name="h100", bfloat16=989.5e12, float16=989.5e12, int8=1979e12, float8=1979e12,
        float32=494.5e12, high=494.5e12, highest=67e12, bandwidth=3350e9,
    ),
    "a100": Chip(
        name="a100", bfloat16=312e12, float16=312e12, int8=624e12, float8=312e12,
        float32=156e12, high=156e12, highest=19.5e12, bandwidth=2039e9,
    ),
    "l4": Chip(
        name="l4", bfloat16=121e12, float16=121e12, int8=242.5e12, float8=242.5e12,
        float32=60e12, high=60e12, highest=30.3e12, bandwidth=300e9,
    ),
    "t4": Chip(
        name="t4", bfloat16=8.1e12, float16=65e12, int8=130e12, float8=65e12,
        float32=8.1e12, high=8.1e12, highest=8.1e12, bandwidth=320e9,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that a program takes on one chip, and of what."""

    chip: str
    flops: Mapping[str, int]
    """Operations of products by the type they are computed in, the wider of the two operands: ``s8``, ``bf16``."""
    bytes_accessed: int
    """Bytes between the chip and its main memory."""
    seconds_compute: float
    seconds_memory: float
    reported_bytes: int | None
    """What XLA's own cost analysis calls bytes accessed; None for a text. For a TPU it also counts the memory on the
    chip, which takes no bandwidth, and loops count once."""

    @property
    def seconds(self) -> float:
        """The larger of both times: at best they overlap whole."""
        return max(self.seconds_compute, self.seconds_memory)

    @property
    def bound(self) -> str:
        """``compute`` or ``memory``: what takes the time."""
        return "compute" if self.seconds_compute >= self.seconds_memory else "memory"


def roofline(
    program: jax.stages.Compiled | str, chip: str | Chip, bytes_accessed: float | None = None
) -> Roofline:
    """The roofline of a compiled program (or of its text) on one chip; of a sharded program, the part of one chip.

    Args:
      program: what ``jit(f).lower(...).compile()`` gives, or its ``as_text()``.
      chip: one of `CHIPS`, or its name.
      bytes_accessed: traffic with the main memory; by default `hlo.memory_traffic` of the text. XLA's own figure is not
        taken, for what `Roofline.reported_bytes` says.

    Raises:
      UserError: no chip has that name.
      ValueError: a text that is no HLO module.
    """
    if isinstance(chip, str):
        if chip not in CHIPS:
            raise UserError(f"no chip {chip!r}: choose one of {', '.join(CHIPS)}, or pass a Chip")
        chip = CHIPS[chip]
    text, reported = program, None
    if not isinstance(program, str):
        text = program.as_text() or ""
        cost = program.cost_analysis() or {}
        reported = int(cost.get("bytes accessed", 0)) or None
    assert isinstance(text, str)
    flops: dict[str, int] = {}
    seconds = 0.0
    for operation in hlo.operations(text):
        count = operation.flops * (1 if operation.trips is None else operation.trips)
        dtype = max(operation.operand_dtypes, key=hlo.bits)
        flops[dtype] = flops.get(dtype, 0) + count
        seconds += count / chip.rate(operation)
    moved = int(hlo.memory_traffic(text) if bytes_accessed is None else bytes_accessed)
    return Roofline(chip.name, flops, moved, seconds, moved / chip.bandwidth, reported)


def compile_for(
    f: Callable[..., Any],
    *args: Any,
    devices: str = "v5e:2x2",
    chips: int | None = None,
    batch: int | Sequence[int] = -1,
) -> jax.stages.Compiled:
    """Compiles `f` by the real compiler for devices that are not attached; what comes back can be read, not run.

    The first axis of the arguments `batch` is split over the devices, all else is copied to each, so that text, memory
    and costs are those of one device. libtpu logs less and asks no network when the process has
    ``JAX_PLATFORMS=cpu`` in its environment, which it needs where no TPU is.

    Args:
      f: a function of arrays.
      args: its arguments, trees of `jax.ShapeDtypeStruct` (or of arrays, whose values do not matter).
      devices: as `jaxaccel.core.unattached.find_devices` takes them: ``h100``, ``a100:8``, ``v5e:2x2``, ``v5p:2x2x1``.
      chips: how many of them to use; all by default.
      batch: which arguments are split, by position; the last one by default.

    Raises:
      UserError: their compiler is not installed, it knows no such devices, there are fewer, or they do not divide the
        batch.
    """
    found = find_devices(devices)
    count = len(found) if chips is None else chips
    if not 1 <= count <= len(found):
        raise UserError(f"{devices} has {len(found)} chips: chips={chips} is none of 1 to {len(found)}")
    mesh = Mesh(np.array(found[:count]), ("data",))
    split = {i % len(args) for i in ([batch] if isinstance(batch, int) else batch)}
    for leaf in jax.tree.leaves([args[i] for i in split]):
        if not leaf.shape or leaf.shape[0] % count:
            raise UserError(f"a batch of shape {leaf.shape} does not divide over {count} chips")
    shardings = tuple(
        NamedSharding(mesh, PartitionSpec("data") if i in split else PartitionSpec())
        for i in range(len(args))
    )
    with jax.set_mesh(mesh):  # transformations in `f` are those for its devices
        return jax.jit(f, in_shardings=shardings).lower(*args).compile()
