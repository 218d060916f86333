"""What is known of a value's axes, and which positions along axes belong together.

Every position along every axis of every parameter is a node. A value's label says, for each of its axes, which node
each of its positions is. What is united stands or falls together.
"""

from collections.abc import Sequence

import numpy as np

Axis = np.ndarray | None
"""A node for each position, FIXED where it is none; None where all positions are alike, as after a broadcast."""
FIXED = -1


class Label:
    """What is known of a value: its axes, and whether it is a parameter, in whatever layout."""

    def __init__(self, axes: Sequence[Axis], param: bool = False) -> None:
        self.axes, self.param = tuple(axes), param


class Nodes:
    """Disjoint sets of nodes, some of them fixed."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.fixed: dict[int, str] = {}
        """Why a set is fixed, by its node."""
        self.because = ""
        """Why what is fixed now is."""
        self.changes = 0

    def new(self, count: int) -> np.ndarray:
        """So many nodes, each by itself."""
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, node: int) -> int:
        """The representative of a node's set."""
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def fix(self, axis: Axis) -> None:
        """Nothing of `axis` may be removed."""
        if axis is not None:
            roots = {self.root(int(node)) for node in np.unique(axis) if node != FIXED} - self.fixed.keys()
            self.changes += len(roots)
            self.fixed.update(dict.fromkeys(roots, self.because))

    def fix_all(self, label: Label) -> None:
        """Nothing of any axis may be removed."""
        for axis in label.axes:
            self.fix(axis)

    def unite(self, a: Axis, b: Axis) -> Axis:
        """Position i of `a` and of `b` are one; returns the label of both."""
        if a is None or b is None:
            return b if a is None else a
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            if x == FIXED or y == FIXED:
                self.fix(np.array([max(x, y)]))
            elif (p := self.root(x)) != (q := self.root(y)):
                self.parent[q] = p
                self.changes += 1
                if q in self.fixed:
                    self.fixed.setdefault(p, self.fixed[q])
        return np.where(a == FIXED, b, a)

    def unite_rows(self, pieces: np.ndarray | None) -> None:
        """Position i of each row of `pieces` is one."""
        for piece in pieces[1:] if pieces is not None else ():
            self.unite(pieces[0], piece)  # type: ignore[index]

    def united(self, labels: Sequence[Label]) -> Label:
        """The label of all of them, which are of one shape."""
        axes = labels[0].axes
        for label in labels[1:]:
            axes = tuple(self.unite(a, b) for a, b in zip(axes, label.axes, strict=True))
        return Label(axes, labels[0].param and len(labels) == 1)


def fix_axes(shape: Sequence[int]) -> Label:
    """The label of a value of which nothing may be removed."""
    return Label([np.full(n, FIXED) if n > 1 else None for n in shape])
