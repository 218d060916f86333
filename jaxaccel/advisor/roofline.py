"""How fast a chip could at best run a compiled program, also one for a device that is not attached.

The roofline model (Williams, Waterman, Patterson 2009, https://doi.org/10.1145/1498765.1498785): a program takes at
least its multiplications at the peak rate of their type, and at least its memory traffic at the peak bandwidth. Real
runs take longer. It serves to compare variants of one function, not to promise a time. `jaxaccel.advisor.chips` has the
peaks.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxaccel.advisor.chips import CHIPS, Chip
from jaxaccel.core import hlo
from jaxaccel.core.compile_ahead import compile_on
from jaxaccel.core.unattached import find_devices
from jaxaccel.errors import UserError


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
    peak_bytes: int | None = None
    """Main memory that it needs at once: arguments, results and what lies between, without what results take over from
    donated arguments. None for a text."""

    @property
    def seconds(self) -> float:
        """The larger of both times: at best they overlap whole."""
        return max(self.seconds_compute, self.seconds_memory)

    @property
    def bound(self) -> str:
        """``compute`` or ``memory``: what takes the time."""
        return "compute" if self.seconds_compute >= self.seconds_memory else "memory"

    def __str__(self) -> str:
        """Three lines: the least time, then operations and bytes with their times and shares of the peak rates."""
        done = ", ".join(f"{shorten(count)} operations in {dtype}" for dtype, count in self.flops.items())
        moved = f"{shorten(self.bytes_accessed)}B moved"
        if self.peak_bytes is not None:
            moved += f", {shorten(self.peak_bytes)}B held at most"
        rows = (
            ("compute", done or "no products", self.seconds_compute),
            ("memory", moved, self.seconds_memory),
        )
        lines = [f"{self.chip}: at least {1e3 * self.seconds:.3g} ms, bound by {self.bound}"]
        for name, what, seconds in rows:
            share = seconds / self.seconds if self.seconds else 0.0
            lines.append(f"  {name}: {what}; {1e3 * seconds:.3g} ms at the peak, {share:.0%} of it used")
        return "\n".join(lines)


def shorten(number: float) -> str:
    """1234567 -> ``1.23 M``."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} P"


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
    text, reported, peak = program, None, None
    if not isinstance(program, str):
        text = program.as_text() or ""
        cost = program.cost_analysis() or {}
        reported, peak = int(cost.get("bytes accessed", 0)) or None, _peak_bytes(program)
    assert isinstance(text, str)
    flops: dict[str, int] = {}
    seconds = 0.0
    for operation in hlo.operations(text):
        count = operation.flops * (1 if operation.trips is None else operation.trips)
        dtype = max(operation.operand_dtypes, key=hlo.bits)
        flops[dtype] = flops.get(dtype, 0) + count
        seconds += count / chip.rate(operation)
    moved = int(hlo.memory_traffic(text) if bytes_accessed is None else bytes_accessed)
    return Roofline(chip.name, flops, moved, seconds, moved / chip.bandwidth, reported, peak)


def _peak_bytes(program: jax.stages.Compiled) -> int | None:
    held = program.memory_analysis()
    if held is None:
        return None
    arrays = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    return int(arrays + held.temp_size_in_bytes)


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
        batch; or XLA cannot compile `f` for them.
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
    return compile_on(mesh, devices, f, *args, in_shardings=shardings)
