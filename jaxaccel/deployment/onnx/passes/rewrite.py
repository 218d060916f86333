"""How a pass goes through a graph."""

from collections.abc import Callable

from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.graph import Graph, Node, drop_unread, replace_reads
from jaxaccel.deployment.onnx.passes.match import Matcher

Rewrite = Callable[[Builder, Node, Matcher], str | None]
"""``rewrite(builder, node, matcher)`` writes what is better and returns its name, or returns None."""


def rewrite_graph(builder: Builder, graph: Graph, *rewrites: Rewrite) -> None:
    """Replaces nodes, in order, by what the first of `rewrites` that knows one writes; within bodies too."""
    nodes, graph.nodes = graph.nodes, []
    graph.computed.clear()
    matcher = Matcher(nodes, graph, builder.constants)
    replaced: dict[str, str] = {}
    outer, builder.graph = builder.graph, graph
    for node in nodes:
        for body in node.bodies():
            rewrite_graph(builder, body, *rewrites)
        before = len(graph.nodes)
        new = next(
            (name for rewrite in rewrites if (name := rewrite(builder, node, matcher)) is not None), None
        )
        if new is not None:
            replaced[node.outputs[0]] = new
        matcher.producers.update({name: made for made in graph.nodes[before:] for name in made.outputs})
        graph.nodes.append(node)
    builder.graph = outer
    replace_reads(graph, replaced)
    drop_unread(graph)
