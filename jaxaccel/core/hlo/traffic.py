"""How much optimized HLO moves between a chip and its main memory."""

import math
from collections.abc import Mapping

from jaxaccel.core.hlo.text import Computation, Instruction, list_calls, parse

# What these give is a view, or is paid for inside of them.
_FREE = frozenset(
    [
        "after-all",
        "bitcast",
        "call",
        "conditional",
        "constant",
        "get-tuple-element",
        "iota",
        "parameter",
        "tuple",
        "while",
    ]
)
_SLICES = frozenset(["dynamic-slice", "gather", "slice", "slice-start"])


def memory_traffic(text: str) -> int:
    """Bytes that optimized HLO moves between the chip and its main memory.

    Each instruction outside of fusions reads its operands and writes its results, but for what lies in memory on the
    chip (``S(1)`` in the layouts of TPUs); a slice reads what it takes, and an update in place writes what it puts.
    Loops count as often as they run, or once where the text does not tell. Padding by tiles is left out, as in XLA's
    own count, with which this one agrees on programs without loops for the CPU.

    Raises:
      ValueError: `text` is no HLO module.
    """
    computations, entry = parse(text)
    moved = 0
    for place in list_calls(computations, entry):
        if place.caller is None or place.caller.opcode in ("call", "conditional", "while"):
            once = sum(_moved(computations, place.computation, it) for it in place.computation.values())
            moved += once * (1 if place.trips is None else place.trips)
    return moved


def _moved(computations: Mapping[str, Computation], computation: Computation, it: Instruction) -> int:
    if it.opcode in _FREE or 'custom_call_target="ConcatBitcast"' in it.attributes:
        return 0
    # An asynchronous copy is two instructions: the start reads, and the end has what was written.
    moved = 0
    if not it.opcode.endswith("-done"):
        for number, name in enumerate(it.operands):
            arrays = computation[name].results
            size = sum(array.bytes for array in arrays if not array.space)
            moved += int(min(size, _needed(computations, it, number))) if len(arrays) == 1 else size
    if not it.opcode.endswith("-start"):
        size = sum(array.bytes for array in it.results if not array.space)
        moved += int(min(size, _put(computations, computation, it)))
    return moved


def _needed(computations: Mapping[str, Computation], it: Instruction, number: int) -> float:
    """Bytes that `it` reads of operand `number`; infinite where it may read all of it."""
    if it.opcode in _SLICES and number == 0:
        return it.results[-2 if it.opcode == "slice-start" else 0].bytes
    if it.opcode == "dynamic-update-slice" and number == 0:
        return 0
    if it.opcode != "fusion":
        return math.inf
    inner = computations[it.called[0]]
    parameter = next(x.name for x in inner.values() if x.opcode == "parameter" and x.arguments == str(number))
    return _needed_inside(computations, inner, parameter)


def _needed_inside(computations: Mapping[str, Computation], inner: Computation, name: str) -> float:
    needed = 0.0
    for user in inner.values():
        for number in (i for i, operand in enumerate(user.operands) if operand == name):
            if user.opcode == "bitcast" and not user.root:
                needed += _needed_inside(computations, inner, user.name)
            else:
                needed += _needed(computations, user, number)
    return needed


def _put(computations: Mapping[str, Computation], computation: Computation, it: Instruction) -> float:
    """Bytes that `it` writes; infinite where it writes all of its results."""
    while it.opcode in ("fusion", "bitcast"):
        if it.opcode == "fusion":
            computation = computations[it.called[0]]
            it = next(x for x in computation.values() if x.root)
        else:
            it = computation[it.operands[0]]
    return computation[it.operands[1]].results[0].bytes if it.opcode == "dynamic-update-slice" else math.inf
