"""What a device makes of common programs, by its real compiler and without the device: `inspect_device`.

Each program is a product alone, with the casts or the quantization of its operands around it. In a network these are
fused into what is before them, so the least times here are those of the worst case.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel import transforms
from jaxaccel.advisor.chips import CHIPS
from jaxaccel.advisor.findings import Finding
from jaxaccel.advisor.roofline import compile_for, roofline
from jaxaccel.core import hlo, runtime, sites
from jaxaccel.core.compile_ahead import first_line
from jaxaccel.core.unattached import GPUS, NAMES, find_devices
from jaxaccel.errors import UserError

RATES = ("float32", "bfloat16", "float16", "int8", "float8")
PRECISIONS: Mapping[str, Callable[..., Any]] = {
    "float32": lambda f: f,
    "bfloat16": transforms.bfloat16,
    "float16": transforms.float16,
    "int8": transforms.int8,
    "float8": transforms.float8,
}
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "float8": 8}


@dataclasses.dataclass(frozen=True)
class Landing:
    """What became of one program in one precision."""

    program: str
    precision: str
    became: str
    """``s8 x s8 -> f32 by cuDNN``, or ``refused: ...``, or ``does not compile: ...``."""
    reason: str = ""
    """Why the transformation left the product as it was."""
    operand_bits: int = 0
    """Of the wider operand, as compiled; 0 where there is none."""
    milliseconds: float | None = None
    """The least time, by the roofline."""
    bound: str = ""
    """``compute`` or ``memory``."""
    flops: int = 0
    bytes_accessed: int = 0
    peak_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class DeviceFacts:
    """What is known of a device, and what its compiler made of programs."""

    device: str
    name: str
    """As its driver reports it."""
    capability: str
    """Compute capability of a GPU, such as ``9.0``; empty for a TPU."""
    memory: int
    """Bytes."""
    peaks: Mapping[str, float]
    """Operations a second by type, as its maker publishes them; float32 is what JAX makes of it by default."""
    bandwidth: float
    """Bytes a second."""
    versions: Mapping[str, str]
    error: str = ""
    """Why nothing can be compiled for it here."""
    landings: tuple[Landing, ...] = ()


def inspect_device(device: str) -> DeviceFacts:
    """Compiles common programs for `device`, which need not be attached; nothing is measured.

    Args:
      device: one of `jaxaccel.core.unattached.NAMES`.

    Raises:
      UserError: there is no such device.
    """
    if device not in NAMES:
        raise UserError(f"no device {device!r}: choose one of {', '.join(NAMES)}")
    chip, gpu = CHIPS[device], GPUS.get(device)
    error, landings = "", ()
    try:
        find_devices(device)
        landings = tuple(_compile_all(device))
    except UserError as raised:
        error = str(raised)
    return DeviceFacts(
        device=device,
        name=gpu.name if gpu else f"TPU {device}",
        capability=".".join(map(str, gpu.capability)) if gpu else "",
        memory=chip.memory,
        peaks={name: getattr(chip, name) for name in RATES},
        bandwidth=chip.bandwidth,
        versions=runtime.versions(),
        error=error,
        landings=landings,
    )


def _compile_all(device: str) -> Iterator[Landing]:
    for program, (f, kernel, x) in _programs().items():
        for precision in PRECISIONS:
            yield compile_one(device, program, precision, f, kernel, x)


def _programs() -> dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]]:
    """Functions with the shapes of their weights and of their input."""

    def product(params: Any, x: Any) -> Any:
        return x @ params["kernel"]

    def convolution(params: Any, x: Any) -> Any:
        labels = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=labels)

    return {
        "matrix product 4096x4096 * 4096x4096": (product, (4096, 4096), (4096, 4096)),
        "convolution 3x3, 32x56x56x64 to 64": (convolution, (3, 3, 64, 64), (32, 56, 56, 64)),
    }


def compile_one(
    device: str,
    program: str,
    precision: str,
    f: Callable[..., Any],
    kernel: tuple[int, ...],
    x: tuple[int, ...],
) -> Landing:
    """Compiles ``f({"kernel": kernel}, x)`` in one precision of `PRECISIONS` and says what became of it."""
    params: Any = {"kernel": jax.ShapeDtypeStruct(kernel, jnp.float32)}
    if precision == "int8":
        params = jax.eval_shape(transforms.params.quantize, params)
    try:
        with sites.record_runs() as runs:
            compiled = compile_for(
                PRECISIONS[precision](f),
                params,
                jax.ShapeDtypeStruct(x, jnp.float32),
                devices=device,
                chips=1,
            )
    except UserError as error:
        cause = error.__cause__
        if cause is not None and isinstance(cause, jax.errors.JaxRuntimeError):
            return Landing(program, precision, f"does not compile: {first_line(cause)}")
        return Landing(program, precision, f"refused: {error}")
    line = roofline(compiled, device)
    found = hlo.operations(compiled.as_text() or "")
    return Landing(
        program,
        precision,
        "; ".join(dict.fromkeys(map(hlo.describe_operation, found)))
        or "no product: a multiplication and a sum",
        reason="; ".join(r.reason for run in runs for r in run.records if r.lowering == "-"),
        operand_bits=max((hlo.bits(d) for operation in found for d in operation.operand_dtypes), default=0),
        milliseconds=1e3 * line.seconds,
        bound=line.bound,
        flops=sum(line.flops.values()),
        bytes_accessed=line.bytes_accessed,
        peak_bytes=line.peak_bytes,
    )


def device_findings(facts: DeviceFacts) -> list[Finding]:
    """What to know before one computes on a device; the serious things first."""
    if facts.error:
        problem, _, remedy = facts.error.rpartition(": pip install ")
        cure = f"pip install {remedy}" if problem else "see docs/get-started.md"
        return [Finding(True, problem or facts.error, cure)]
    found = [*_missing_types(facts), *_unexpected(facts)]
    return sorted(found, key=lambda finding: not finding.serious)


def _lacks(peaks: Mapping[str, float], dtype: str) -> bool:
    """Whether a device has no units for ``bfloat16`` or ``float8``."""
    return {
        "bfloat16": peaks["bfloat16"] < peaks["float16"],
        "float8": peaks["float8"] <= peaks["float16"],
    }.get(dtype, False)


def _missing_types(facts: DeviceFacts) -> Iterator[Finding]:
    peaks, device = facts.peaks, facts.device
    if _lacks(peaks, "bfloat16"):
        yield Finding(
            False,
            f"the {device} has no bfloat16: {peaks['bfloat16'] / 1e12:g} TFLOP/s, against"
            f" {peaks['float16'] / 1e12:g} in float16",
            "train with --precision float16",
        )
    if _lacks(peaks, "float8"):
        yield Finding(False, f"the {device} has no float8", "use int8 there, or 16 bits")
    if peaks["int8"] <= peaks["bfloat16"]:
        yield Finding(
            False,
            f"the {device} multiplies int8 no faster than bfloat16",
            "use int8 there for fewer bytes, and bfloat16 for speed",
        )


def _unexpected(facts: DeviceFacts) -> Iterator[Finding]:
    for landing in facts.landings:
        what = f"{landing.precision}, {landing.program}"
        if landing.became.startswith("does not compile"):
            yield Finding(
                landing.precision == "float32",
                f"{what}: {landing.became}",
                "use another precision, or report it",
            )
        elif landing.reason or _lacks(facts.peaks, landing.precision):
            continue  # told beside it, or once for all programs
        elif landing.operand_bits > BITS[landing.precision]:
            yield Finding(
                False,
                f"{what} is computed as {landing.became}",
                f"expect no gain of {landing.precision} there",
            )
