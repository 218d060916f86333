"""Finds patterns of operators in a graph."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.deployment.onnx.graph import Graph, Node, find_producers, find_reads

VIEWS = ("Squeeze", "Unsqueeze", "Identity")
"""Operators that only add and drop axes of size 1, which patterns overlook."""
_COMMUTATIVE = ("Add", "Mul", "Max", "Min")


@dataclasses.dataclass(frozen=True)
class Op:
    """A pattern: an operator, and the patterns of its operands; those of ``Add`` and the like in any order.

    A text among the operands is a value that the match names so: equal names are the same value.
    """

    op: str
    operands: tuple[Any, ...]
    name: str = ""
    """What the match names the result."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A pattern: a constant of one number, near `value` where there is one, else as the match names it."""

    value: float | None = None
    name: str = ""


class Matcher:
    """One graph as patterns are looked for in it."""

    def __init__(self, nodes: Sequence[Node], graph: Graph, constants: Mapping[str, np.ndarray]) -> None:
        self.constants = constants
        whole = dataclasses.replace(graph, nodes=list(nodes))
        self.producers = find_producers(whole)
        self.reads = find_reads(whole)

    def strip(self, value: str) -> str:
        """The value that `value` is but for axes of size 1."""
        while value in self.producers and self.producers[value].op in VIEWS:
            value = self.producers[value].inputs[0]
        return value

    def producer(self, value: str) -> Node | None:
        """The node that computes a value, in this graph."""
        return self.producers.get(value)

    def match(
        self, value: str, pattern: Any, found: Mapping[str, str] | None = None
    ) -> dict[str, str] | None:
        """What the names of a pattern stand for where `value` is computed so; None where it is not."""
        found = dict(found or {})
        stripped = self.strip(value)
        if isinstance(pattern, str):
            held = found.setdefault(pattern, value)
            return found if self.strip(held) == stripped else None
        if isinstance(pattern, Number):
            return self._number(stripped, pattern, found)
        node = self.producers.get(stripped)
        if node is None or node.op != pattern.op or len(node.inputs) < len(pattern.operands):
            return None
        if pattern.name and found.setdefault(pattern.name, stripped) != stripped:
            return None
        orders = [node.inputs[: len(pattern.operands)]]
        if node.op in _COMMUTATIVE:
            orders.append(orders[0][::-1])
        for operands in orders:
            got: dict[str, str] | None = found
            for name, inner in zip(operands, pattern.operands, strict=True):
                got = None if got is None else self.match(name, inner, got)
            if got is not None:
                return got
        return None

    def _number(self, value: str, pattern: Number, found: dict[str, str]) -> dict[str, str] | None:
        array = self.constants.get(value)
        if array is None or array.size != 1:
            return None
        if pattern.value is not None and not np.isclose(array.item(), pattern.value, rtol=1e-4, atol=1e-7):
            return None
        if pattern.name:
            found.setdefault(pattern.name, value)
        return found

    def number(self, value: str) -> float:
        """The one number of a constant."""
        return float(self.constants[value].item())
