"""A graph of ONNX operators under construction, before it is written as protocol buffers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Dims = Sequence[Any]
"""Sizes: integers, and symbolic dimensions of JAX."""


@dataclasses.dataclass
class Node:
    """One operator. Attributes are numbers, texts, lists of them, arrays, or a `Graph`: the body of a loop."""

    op: str
    inputs: list[str]
    """Names of values; an empty one is an input that is left out."""
    outputs: list[str]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def bodies(self) -> list["Graph"]:
        """The graphs among the attributes."""
        return [value for value in self.attributes.values() if isinstance(value, Graph)]


@dataclasses.dataclass(frozen=True)
class Value:
    """What a graph takes or gives: its name, the dtype in the file, and its sizes."""

    name: str
    dtype: np.dtype
    shape: tuple[Any, ...]


@dataclasses.dataclass
class Graph:
    """Nodes in an order in which they can be computed."""

    parent: "Graph | None" = None
    """The graph around a body, whose values the body may read."""
    nodes: list[Node] = dataclasses.field(default_factory=list)
    inputs: list[Value] = dataclasses.field(default_factory=list)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    computed: dict[Any, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By operator, inputs and attributes: the results, so that nothing is computed twice."""

    def find(self, key: Any) -> tuple[str, ...] | None:
        """The results of an equal node, here or in a graph around."""
        graph: Graph | None = self
        while graph is not None:
            if key in graph.computed:
                return graph.computed[key]
            graph = graph.parent
        return None


def find_reads(graph: Graph) -> dict[str, int]:
    """How often each value is read, within bodies too; a result of the graph counts as read."""
    reads: dict[str, int] = {}
    names = [value.name for value in graph.outputs]
    for node in graph.nodes:
        names += node.inputs
        for body in node.bodies():
            for name, count in find_reads(body).items():
                reads[name] = reads.get(name, 0) + count
    for name in names:
        reads[name] = reads.get(name, 0) + 1
    return reads


def drop_unread(graph: Graph) -> None:
    """Removes nodes of which nothing is read, within bodies too."""
    for node in graph.nodes:
        for body in node.bodies():
            drop_unread(body)
    read = {value.name for value in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if read & {*node.outputs}:
            kept.append(node)
            read |= {*node.inputs}
            for body in node.bodies():
                read |= find_reads(body).keys()
    graph.nodes = kept[::-1]


def replace_reads(graph: Graph, names: Mapping[str, str]) -> None:
    """Reads other values in place of those that are keys of `names`."""

    def last(name: str) -> str:
        while name in names:
            name = names[name]
        return name

    for node in graph.nodes:
        node.inputs = [last(name) for name in node.inputs]
        for body in node.bodies():
            replace_reads(body, names)
    graph.outputs = [dataclasses.replace(value, name=last(value.name)) for value in graph.outputs]


def find_producers(graph: Graph) -> dict[str, Node]:
    """By name of a value: the node of this graph that computes it."""
    return {name: node for node in graph.nodes for name in node.outputs}


def freeze(value: Any) -> Any:
    """An attribute as something that can be a key; a body is only equal to itself."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(value)
    return id(value) if isinstance(value, Graph) else value
