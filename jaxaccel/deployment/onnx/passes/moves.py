"""Less moving: transpositions and changes of axes that undo each other, and pooling by slices."""

import itertools

import numpy as np

from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.graph import Node
from jaxaccel.deployment.onnx.passes.match import Matcher

_CHANNELS_LAST, _CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def join_moves(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """Axes that are dropped and added again; a transposition of a transposition."""
    before = matcher.producers.get(node.inputs[0]) if node.inputs else None
    if before is None:
        return None
    if node.op == "Unsqueeze" and before.op == "Squeeze":
        same = [matcher.constants.get(x.inputs[1]) for x in (node, before)]
        if all(x is not None for x in same) and np.array_equal(*same):  # type: ignore[arg-type]
            return before.inputs[0]
    if node.op == before.op == "Transpose":
        perm = [before.attributes["perm"][axis] for axis in node.attributes["perm"]]
        if perm == sorted(perm):
            return before.inputs[0]
        return builder.node("Transpose", before.inputs[0], perm=perm)
    return None


def write_max_pool(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """The maximum of the four pixels of blocks of 2x2, as `max_pool_2x2` cuts them out: MaxPool."""
    if node.op != "Max":
        return None
    pairs = [matcher.producers.get(name) for name in node.inputs]
    if any(pair is None or pair.op != "Max" for pair in pairs):
        return None
    found: list[tuple[str, tuple[int, ...]]] = []
    for name in itertools.chain.from_iterable(pair.inputs for pair in pairs if pair):
        part = matcher.producers.get(matcher.strip(name))
        if part is None or part.op != "Slice":
            return None
        starts, axes = (matcher.constants[part.inputs[i]].tolist() for i in (1, 3))
        if axes != [2, 4]:
            return None
        found.append((part.inputs[0], tuple(starts)))
    if len({name for name, _ in found}) != 1 or sorted(s for _, s in found) != [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]:
        return None
    blocks = matcher.producers.get(found[0][0])
    shape = matcher.constants.get(blocks.inputs[1]) if blocks is not None and blocks.op == "Reshape" else None
    if blocks is None or shape is None or shape.size != 6 or shape[[2, 4]].tolist() != [2, 2]:
        return None
    images = builder.node("Transpose", blocks.inputs[0], perm=_CHANNELS_FIRST)
    pooled = builder.node("MaxPool", images, kernel_shape=[2, 2], strides=[2, 2])
    return builder.node("Transpose", pooled, perm=_CHANNELS_LAST)
