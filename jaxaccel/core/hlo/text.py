"""Optimized HLO as ``compiled.as_text()`` prints it, parsed: instructions, computations, and what calls what.

Only what CPUs, GPUs and TPUs print is understood, with names that start with ``%`` and operands without types; the
grammar is that of XLA's ``HloModule::ToString``.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Values pass through these unchanged, apart from their place, order or number.
MOVES = frozenset(
    [
        "bitcast",
        "broadcast",
        "copy",
        "copy-done",
        "copy-start",
        "dynamic-slice",
        "optimization-barrier",
        "pad",
        "reshape",
        "reverse",
        "slice",
        "transpose",
    ]
)
_CALLS = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([^\]]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in the text: its type, and the memory it lies in (0: the main memory; others are on the chip)."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Size without the padding of tiles."""
        return -(-math.prod(self.shape) * bits(self.dtype) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: ``name = results opcode(arguments), attributes``."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    """One array, or the arrays of a tuple, nested ones flattened."""
    arguments: str
    attributes: str
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions of the same computation that this one reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that this one runs."""
        if self.opcode.endswith(("-done", "-update")):  # they name what their -start has begun
            return ()
        branches = "".join(_BRANCHES.findall(self.attributes))
        return (*_CALLS.findall(self.attributes), *re.findall(r"%([\w.\-]+)", branches))

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes; empty where it is not found."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Place:
    """A computation as it is reached from the entry: by which instruction of which place, and how often it runs."""

    computation: Computation
    caller: Instruction | None = None
    parent: "Place | None" = None
    trips: int | None = 1


def bits(dtype: str) -> int:
    """Bits of one element of an HLO type: 8 of ``f8e4m3fn`` and of ``pred``; 0 of ``token``."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else {"pred": 8}.get(dtype, 0)


def parse(text: str) -> tuple[dict[str, Computation], Computation]:
    """All computations of an HLO module by name, and the one it enters by.

    Raises:
      ValueError: `text` is no HLO module as XLA prints it.
    """
    computations: dict[str, Computation] = {}
    entry = None
    body: Computation = {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            body = computations.setdefault(header[2], {})
            entry = body if header[1] else entry
        elif found := re.match(r"  (ROOT )?%([\w.\-]+) = (.*)", line):
            body[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if entry is None:
        raise ValueError("no ENTRY computation: is this the text of compiled.as_text()?")
    return computations, entry


def list_calls(computations: dict[str, Computation], entry: Computation) -> Iterator[Place]:
    """The entry and all that it calls, once for each call."""
    waiting = [Place(entry)]
    while waiting:
        place = waiting.pop()
        yield place
        for instruction in place.computation.values():
            trips = place.trips
            if instruction.opcode == "while":
                own = trip_count(computations, place, instruction)
                trips = own * trips if own is not None and trips is not None else None
            waiting += [Place(computations[name], instruction, place, trips) for name in instruction.called]


def trace_source(computations: dict[str, Computation], place: Place, name: str) -> tuple[Place, Instruction]:
    """Where a value was computed: back through moves, tuples, and in and out of fusions."""
    index = 0
    while True:
        it = place.computation[name]
        if it.opcode in MOVES or it.opcode == "get-tuple-element":
            index = int(it.attribute(r"\bindex=(\d+)") or 0) if it.opcode == "get-tuple-element" else index
            if (
                place.computation[it.operands[0]].opcode in ("while", "parameter")
                and "index=" in it.attributes
            ):
                return place, it
            name = it.operands[0]
        elif it.opcode == "tuple":
            name = it.operands[index]
        elif (
            it.opcode == "parameter"
            and place.caller
            and place.parent
            and place.caller.opcode in ("fusion", "call")
        ):
            place, name = place.parent, place.caller.operands[int(it.arguments)]
        elif it.opcode in ("fusion", "call"):
            place = Place(computations[it.called[0]], it, place, place.trips)
            name = next(inner.name for inner in place.computation.values() if inner.root)
        else:
            return place, it


def trip_count(computations: dict[str, Computation], place: Place, loop: Instruction) -> int | None:
    """How often a loop runs: what XLA noted, or what ``for i in range(start, stop)`` looks like.

    XLA:TPU drops its note. Then the condition must compare an element of the state with a constant, and the body
    must add 1 to that element.
    """
    if noted := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(noted)
    condition = Place(computations[loop.attribute(r"condition=%([\w.\-]+)")], loop, place)
    body = Place(computations[loop.attribute(r"body=%([\w.\-]+)")], loop, place)

    def number(place: Place, name: str) -> int | None:
        it = trace_source(computations, place, name)[1]
        return int(it.arguments) if it.opcode == "constant" and re.fullmatch(r"-?\d+", it.arguments) else None

    def element(place: Place, name: str) -> str:
        it = trace_source(computations, place, name)[1]
        return it.attribute(r"\bindex=(\d+)") if it.opcode == "get-tuple-element" else ""

    def root(place: Place) -> str:
        return next(it.name for it in place.computation.values() if it.root)

    inner, test = trace_source(computations, condition, root(condition))
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, stop = element(inner, test.operands[0]), number(inner, test.operands[1])
    state = place.computation[loop.operands[0]]
    if not counter or stop is None or state.opcode != "tuple":
        return None
    start = number(place, state.operands[int(counter)])
    inner, step = trace_source(computations, body, body.computation[root(body)].operands[int(counter)])
    counts = step.opcode == "add" and element(inner, step.operands[0]) == counter
    if start is None or not counts or number(inner, step.operands[1]) != 1:
        return None
    return max(0, stop - start)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    return Instruction(
        name,
        text[end:opening].strip(),
        tuple(_array(*found) for found in _ARRAY.findall(text[:end])),
        text[opening + 1 : closing - 1],
        text[closing:],
        root,
    )


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise ValueError(f"parenthesis never closed in {text[:80]!r}")


def _array(dtype: str, dimensions: str, layout: str) -> Array:
    space = re.search(r"S\((\d+)\)", layout)
    return Array(dtype, tuple(map(int, re.findall(r"\d+", dimensions))), int(space[1]) if space else 0)
