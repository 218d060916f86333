"""The device mesh: three axes, ``data``, ``fsdp`` and ``model``."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxaccel.core.options import Options
from jaxaccel.errors import UserError

DATA, FSDP, MODEL = AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True)
class MeshShape(Options):
    """How many devices stand along each axis of the mesh; -1 on one axis means all that are left."""

    data: int = -1
    """Number of devices for data parallelism: parameters are copied, the batch is split."""
    fsdp: int = 1
    """Number of devices for fully sharded data parallelism: the batch, the parameters and the optimizer state
    are split."""
    model: int = 1
    """Number of devices for tensor parallelism: the matrices of attention, MLP and dense layers are split."""

    def check_values(self) -> None:
        """Checks that sizes are positive, but for at most one -1."""
        sizes = [self.data, self.fsdp, self.model]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(f"mesh sizes must be positive, with at most one -1: got {_text(sizes)}")


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `shape` over `devices` (default: all devices of all processes).

    With no -1 and fewer devices asked for than there are, the first ones are used.

    Raises:
      UserError: more devices than there are, or a -1 that does not come out even.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = [shape.data, shape.fsdp, shape.model]
    fixed = math.prod(size for size in sizes if size != -1)
    if fixed > len(devices):
        raise UserError(
            f"the mesh {_text(sizes)} needs {fixed} devices and there are {len(devices)}: make it smaller, "
            "or try it on a CPU with XLA_FLAGS=--xla_force_host_platform_device_count=N"
        )
    if -1 in sizes:
        if len(devices) % fixed:
            raise UserError(
                f"the mesh {_text(sizes)} does not divide over {len(devices)} devices: "
                f"the fixed axes take {fixed} at a time"
            )
        sizes[sizes.index(-1)] = len(devices) // fixed
    devices = devices[: math.prod(sizes)]
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _text(sizes: Sequence[int]) -> str:
    return "(" + ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True)) + ")"
