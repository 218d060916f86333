"""The products in optimized HLO: with which types they are computed, by what, how often, and of how many terms."""

import dataclasses
import math
import re

from jaxaccel.core.hlo.text import Computation, Instruction, Place, bits, list_calls, parse, trace_source

_LIBRARY = re.compile(r"__cublas\$|__cudnn\$conv|__onednn\$")
_MAKERS = {"__cublas": "cuBLAS", "__cudnn": "cuDNN", "__onednn": "oneDNN", "__triton": "Triton"}
"""Who made the code, by the start of `Inside.kind`."""
_FUSIONS = {
    "kLoop": "a loop fusion",
    "kInput": "an input fusion",
    "kOutput": "an output fusion",
    "kCustom": "a custom fusion",
}


@dataclasses.dataclass(frozen=True)
class Inside:
    """The fusion or the library call that does an operation."""

    name: str
    kind: str
    """``kOutput``, ``kLoop``, ...; the backend's name for it, such as ``__ynn_fusion``; or the target of the call."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """A matrix product or a convolution. Types are written as in HLO: ``s8``, ``bf16``, ``f32``."""

    name: str
    opcode: str
    """``dot`` or ``convolution``, also where a library does it."""
    operand_dtypes: tuple[str, str]
    operand_shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: str
    shape: tuple[int, ...]
    flops: int
    """Twice the multiplications of one execution; multiply by `trips` for those of the program."""
    op_name: str
    """What JAX called it, such as ``jit(f)/dot_general``; empty where the compiler made it."""
    inside: Inside | None
    """The innermost fusion around it, or the library that does it; None where it stands alone."""
    upcast_from: str | None
    """The narrower type that an operand had just before, when all that was done to it is converting it."""
    trips: int | None
    """How often the loops around it run it: 1 outside of loops, None where the text does not tell."""
    precision: str
    """``default``, ``high`` or ``highest``: what was asked for products of float32."""


def operations(text: str) -> list[Operation]:
    """Every dot and convolution of optimized HLO text, also those that cuBLAS, cuDNN and oneDNN do.

    Raises:
      ValueError: `text` is no HLO module, or a library call does not tell its dimensions.
    """
    computations, entry = parse(text)
    return [
        _operation(computations, place, instruction)
        for place in list_calls(computations, entry)
        for instruction in place.computation.values()
        if instruction.opcode in ("dot", "convolution") or _target(instruction)
    ]


def describe_operation(operation: Operation) -> str:
    """Says how an operation is computed, and by what: ``s8 x s8 -> f32 by cuDNN``.

    Libraries and Triton have their names, fusions say of which kind they are, and what a backend calls its own
    (``__ynn_fusion``) stays as it is.
    """
    left, right = operation.operand_dtypes
    words = f"{left} x {right} -> {operation.dtype}"
    if operation.upcast_from:
        words += f" (widened from {operation.upcast_from})"
    if operation.inside is None:
        return words
    kind = operation.inside.kind
    made_by = next((name for start, name in _MAKERS.items() if kind.startswith(start)), "")
    return f"{words} by {made_by}" if made_by else f"{words} in {_FUSIONS.get(kind, kind)}"


def _target(instruction: Instruction) -> str:
    """The library function that multiplies, such as ``__cublas$gemm``; empty for other instructions."""
    target = (
        instruction.attribute(r'custom_call_target="([^"]*)"') if instruction.opcode == "custom-call" else ""
    )
    return target if _LIBRARY.match(target) else ""


def _operation(computations: dict[str, Computation], place: Place, it: Instruction) -> Operation:
    target = _target(it)
    left, right = (place.computation[name].results[0] for name in it.operands[:2])
    result, convolution = it.results[0], "dim_labels=" in it.attributes
    if convolution:
        # The gradients are called with the dimensions of the forward convolution, whose result is an operand here.
        images, kernel, sums = left, right, result
        if target.endswith("BackwardInput"):
            images, sums = result, left
        elif target.endswith("BackwardFilter"):
            kernel, sums = result, right
        flops = _convolution_flops(it, images.shape, kernel.shape, sums.shape)
    else:
        flops = 2 * math.prod(result.shape) * _contracted(it, left.shape, target)
    precision = it.attribute(r'operand_precision"?[=:][{\[]"?(\w+)') or "default"
    upcasts = (_upcast(computations, place, name) for name in it.operands[:2])
    return Operation(
        it.name,
        "convolution" if convolution else "dot",
        (left.dtype, right.dtype),
        (left.shape, right.shape),
        result.dtype,
        result.shape,
        flops,
        it.attribute(r'op_name="([^"]*)"'),
        Inside(it.name, target) if target else _fusion(place),
        next((dtype for dtype in upcasts if dtype), None),
        place.trips,
        precision.lower(),
    )


def _fusion(place: Place | None) -> Inside | None:
    while place and place.caller:
        if place.caller.opcode == "fusion":
            kind = place.caller.attribute(r'"kind":"(__[^"]*)"') or place.caller.attribute(r"\bkind=(\w+)")
            return Inside(place.caller.name, kind)
        place = place.parent
    return None


def _contracted(it: Instruction, left: tuple[int, ...], target: str) -> int:
    """How many products each element of a dot's result sums."""
    found = re.search(r'lhs_contracting_dim(?:s|ensions"?)[=:][{\[]([^}\]]*)[}\]]', it.attributes)
    if found:
        return math.prod(left[int(i)] for i in re.findall(r"\d+", found[1]))
    if target == "__onednn$matmul":
        return left[-2 if '"transpose_a":true' in it.attributes else -1]
    raise ValueError(f"{it.name}: {target or it.opcode} does not tell what it contracts")


def _convolution_flops(
    it: Instruction, images: tuple[int, ...], kernel: tuple[int, ...], sums: tuple[int, ...]
) -> int:
    of_images, of_kernel, of_sums = re.split("_|->", it.attribute(r"dim_labels=([\w\->]+)"))
    axes = sorted(set(of_images) - {"b", "f"})
    window = it.attribute(r"window=\{([^}]*)\}")

    def field(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=([\d_x\-]+)", window)
        return found[1].split("x") if found else [default] * len(axes)

    taps = 1
    for i, axis in enumerate(axes):
        taps *= _taps(
            images[of_images.index(axis)],
            kernel[of_kernel.index(axis)],
            sums[of_sums.index(axis)],
            stride=int(field("stride", "1")[i]),
            before=int(field("pad", "0_0")[i].split("_")[0]),
            image_dilation=int(field("lhs_dilate", "1")[i]),
            kernel_dilation=int(field("rhs_dilate", "1")[i]),
        )
    # The kernel's input features are those of one group, so groups need no care.
    return 2 * taps * sums[of_sums.index("b")] * sums[of_sums.index("f")] * kernel[of_kernel.index("i")]


def _taps(
    image: int,
    kernel: int,
    result: int,
    *,
    stride: int,
    before: int,
    image_dilation: int,
    kernel_dilation: int,
) -> int:
    """How often along one axis an element of the kernel meets one of the image, and not padding or a hole."""
    last = (image - 1) * image_dilation
    positions = (o * stride + k * kernel_dilation - before for o in range(result) for k in range(kernel))
    return sum(0 <= position <= last and position % image_dilation == 0 for position in positions)


def _upcast(computations: dict[str, Computation], place: Place, name: str) -> str | None:
    widest = place.computation[name].results[0].dtype
    narrowest = widest
    place, it = trace_source(computations, place, name)
    while it.opcode == "convert":
        narrowest = place.computation[it.operands[0]].results[0].dtype
        place, it = trace_source(computations, place, it.operands[0])
    return narrowest if bits(narrowest) < bits(widest) else None
