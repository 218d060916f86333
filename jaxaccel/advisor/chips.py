"""The peaks of chips as their makers publish them: operations a second by type, bandwidth and memory.

Operations are those of dense matrices, of one chip:

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
from collections.abc import Mapping

from jaxaccel.core import hlo
from jaxaccel.core.unattached import GPUS


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
    memory: int
    """Bytes of main memory."""

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


def _tpu(name: str, bfloat16: float, int8: float, bandwidth: float, memory: int) -> Chip:
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
        memory=memory,
    )


CHIPS: Mapping[str, Chip] = {
    "v4": _tpu("v4", 275e12, 275e12, 1200e9, 32 * 2**30),
    "v5e": _tpu("v5e", 197e12, 393e12, 819e9, 16 * 10**9),
    "v5p": _tpu("v5p", 459e12, 918e12, 2765e9, 95 * 10**9),
    "v6e": _tpu("v6e", 918e12, 1836e12, 1638e9, 32 * 10**9),
    "h200": Chip(
        name="h200", bfloat16=989.5e12, float16=989.5e12, int8=1979e12, float8=1979e12,
        float32=494.5e12, high=494.5e12, highest=67e12, bandwidth=4800e9, memory=GPUS["h200"].memory,
    ),
    "h100": Chip(
        name="h100", bfloat16=989.5e12, float16=989.5e12, int8=1979e12, float8=1979e12,
        float32=494.5e12, high=494.5e12, highest=67e12, bandwidth=3350e9, memory=GPUS["h100"].memory,
    ),
    "a100": Chip(
        name="a100", bfloat16=312e12, float16=312e12, int8=624e12, float8=312e12,
        float32=156e12, high=156e12, highest=19.5e12, bandwidth=2039e9, memory=GPUS["a100"].memory,
    ),
    "l4": Chip(
        name="l4", bfloat16=121e12, float16=121e12, int8=242.5e12, float8=242.5e12,
        float32=60e12, high=60e12, highest=30.3e12, bandwidth=300e9, memory=GPUS["l4"].memory,
    ),
    "t4": Chip(
        name="t4", bfloat16=8.1e12, float16=65e12, int8=130e12, float8=65e12,
        float32=8.1e12, high=8.1e12, highest=8.1e12, bandwidth=320e9, memory=GPUS["t4"].memory,
    ),
}  # fmt: skip
