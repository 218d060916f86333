"""Writes operators and constants, and brings tensors into the order and shape that an operator needs."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxaccel.deployment.onnx.dimensions import write_dimension
from jaxaccel.deployment.onnx.graph import Dims, Graph, Node, Value, freeze
from jaxaccel.deployment.onnx.tensor import Tensor, dtype_in_file, is_static, plain

MAX_COMPARED_ITEMS = 4096
"""Constants of at most so many numbers are compared with the others, so that equal ones are stored once."""


@runtime_checkable
class Written(Protocol):
    """An operand that writes itself with its axes in an order, then in a shape: quantized weights."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        ...

    def write(self, builder: "Builder", order: Sequence[int], shape: Sequence[int] | None = None) -> str:
        """The name of the ONNX value."""
        ...


class Builder:
    """A model under construction: the graph that is written to, and the constants of all its graphs."""

    def __init__(self) -> None:
        self.graph = self.root = Graph()
        self.constants: dict[str, np.ndarray] = {}
        self.sizes: dict[str, str] = {}
        """By variable of a shape: the name of the int64 value (1,) that holds it."""
        self.producers: dict[str, Node] = {}
        """By name of a value: the node that computes it, in whichever graph."""
        self.summed: dict[str, int] = {}
        """By name of a sum: of how many numbers each of its elements is, where that is known."""
        self.ranks: dict[str, int] = {}
        """By name of a sum, or mean: its number of axes."""
        self._names: dict[str, int] = {}
        self._known: dict[Any, str] = {}
        self._held: list[Any] = []  # so that the ids in `_known` stay their own

    def name(self, base: str) -> str:
        """A name that is not taken."""
        count = self._names[base] = self._names.get(base, 0) + 1
        return base if count == 1 else f"{base}_{count - 1}"

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Writes an operator with one result; returns its name. An equal one is not written again."""
        return self.nodes(op, *inputs, results=1, **attributes)[0]

    def nodes(self, op: str, *inputs: str, results: int, **attributes: Any) -> tuple[str, ...]:
        """The same for operators with several results."""
        held = {key: value for key, value in attributes.items() if value is not None}
        key = (op, inputs, tuple(sorted((k, freeze(v)) for k, v in held.items())))
        found = self.graph.find(key)
        if found is None:
            found = tuple(self.name(op.lower()) for _ in range(results))
            node = Node(op, list(inputs), list(found), held)
            self.graph.nodes.append(node)
            self.producers.update(dict.fromkeys(found, node))
            self.graph.computed[key] = found
        return found

    @contextlib.contextmanager
    def body(self) -> Iterator[Graph]:
        """Writes into a graph of its own, which may read what is around it."""
        outer, self.graph = self.graph, Graph(self.graph)
        try:
            yield self.graph
        finally:
            self.graph = outer

    def constant(self, value: Any, dtype: Any = None, base: str = "constant") -> str:
        """The name of a constant."""
        array = np.asarray(value)
        array = array.astype(dtype_in_file(array.dtype) if dtype is None else dtype, copy=False)
        small = array.size <= MAX_COMPARED_ITEMS
        key = (str(array.dtype), array.shape, array.tobytes()) if small else id(value)
        if key not in self._known:
            name = self._known[key] = self.name(base)
            self.constants[name] = array
            self._held.append(value)
        return self._known[key]

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def value(self, x: Any) -> np.ndarray | None:
        """The numbers of a constant, in the order of the array, with size 1 where it is broadcast; or None."""
        if not isinstance(x, Tensor):
            return np.asarray(x)
        found = self.constants.get(x.name)
        return None if found is None else np.transpose(found, np.argsort(x.order))

    def stretched(self, value: Any, shape: Dims, dtype: Any) -> Tensor:
        """A constant that stands for an array of `shape`, along whose other axes it is broadcast."""
        array = np.asarray(value)
        order = tuple(range(len(shape)))
        return Tensor(self.constant(array), tuple(shape), np.dtype(dtype), order, tuple(array.shape))

    def tensor(self, x: Any) -> Tensor:
        """`x`, an array or a tensor, as a tensor."""
        if isinstance(x, Tensor):
            return x
        array = np.asarray(x)
        return plain(
            self.constant(array if isinstance(x, (int, float, bool)) else x), array.shape, array.dtype
        )

    def ordered(self, x: Any, order: Sequence[int]) -> str:
        """The ONNX value of `x` with its axes in `order`; broadcast axes keep their size 1."""
        order = tuple(order)
        if not isinstance(x, Tensor) or x.name in self.constants:
            array = self.value(x)
            assert array is not None
            if order == tuple(range(array.ndim)):
                return (
                    self.tensor(x).name if not isinstance(x, Tensor) or x.in_order else self.constant(array)
                )
            key = ("ordered", x.name if isinstance(x, Tensor) else id(x), order)
            if key not in self._known:
                self._held.append(x)
                self._known[key] = self.constant(np.ascontiguousarray(np.transpose(array, order)))
            return self._known[key]
        if x.order == order:
            return x.name
        perm = [x.order.index(axis) for axis in order]
        return self._added_elsewhere(x.name, perm) or self.node("Transpose", x.name, perm=perm)

    def _added_elsewhere(self, name: str, perm: Sequence[int]) -> str | None:
        """The transposed value where only axes of size 1 move that were added: they are added elsewhere instead."""
        made = self.producers.get(name)
        if made is None or made.op != "Unsqueeze":
            return None
        added = self.constants[made.inputs[1]].tolist()
        rest = [axis for axis in perm if axis not in added]
        if rest != sorted(rest):
            return None
        return self.node(
            "Unsqueeze", made.inputs[0], self.integers(*[i for i, a in enumerate(perm) if a in added])
        )

    def full(self, x: Any, order: Sequence[int] | None = None) -> str:
        """The ONNX value of the whole array, with its axes in `order`, by default as they are."""
        if isinstance(x, Written):
            return x.write(self, tuple(range(len(x.shape)) if order is None else order))
        tensor = self.tensor(x)
        order = tuple(range(tensor.ndim) if order is None else order)
        name = self.ordered(x, order)
        shape = tuple(tensor.shape[axis] for axis in order)
        stored = tuple(tensor.stored[tensor.order.index(axis)] for axis in order)
        return name if _equal(stored, shape) else self.node("Expand", name, self.shape_vector(shape))

    def shape_vector(self, shape: Dims) -> str:
        """An int64 vector of sizes, computed where they are not known."""
        if is_static(shape):
            return self.integers(*shape)
        parts = [self.integers(n) if isinstance(n, int) else self.dimension(n) for n in shape]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def dimension(self, n: Any) -> str:
        """An int64 value (1,) that holds a size."""
        return write_dimension(n, self._variable, self.integers, self.node)

    def _variable(self, name: str) -> str:
        if name not in self.sizes:
            source, axis = next(
                (value.name, axis)
                for value in self.root.inputs
                for axis, n in enumerate(value.shape)
                if str(n) == name
            )
            outer, self.graph = self.graph, self.root
            self.sizes[name] = self.node("Shape", source, start=axis, end=axis + 1)
            self.graph = outer
            # The sizes are needed by bodies and by nodes written later: they come first.
            self.root.nodes.insert(0, self.root.nodes.pop())
        return self.sizes[name]

    def reshaped(self, name: str, shape: Dims) -> str:
        """An ONNX value in another shape."""
        unknown = [i for i, n in enumerate(shape) if not isinstance(n, int)]
        if len(unknown) == 1:
            return self.node(
                "Reshape", name, self.integers(*[-1 if i in unknown else n for i, n in enumerate(shape)])
            )
        return self.node("Reshape", name, self.shape_vector(shape))

    def cast(self, name: str, before: Any, after: Any) -> str:
        """An ONNX value of dtype `before` as `after`."""
        old, new = dtype_in_file(before), dtype_in_file(after)
        return name if old == new else self.node("Cast", name, to=new)

    def input(self, name: str, shape: Dims, dtype: Any) -> Tensor:
        """Adds an input to the graph that is written."""
        self._names.setdefault(name, 1)
        self.graph.inputs.append(Value(name, dtype_in_file(dtype), tuple(shape)))
        return plain(name, shape, dtype)

    def output(self, x: Any, name: str | None = None) -> None:
        """Adds a result to the graph that is written."""
        tensor = self.tensor(x)
        source = self.full(x)
        taken = name or self.name("result")
        self.graph.nodes.append(Node("Identity", [source], [taken]))
        self.graph.outputs.append(Value(taken, dtype_in_file(tensor.dtype), tensor.shape))


def _equal(a: Dims, b: Dims) -> bool:
    return len(a) == len(b) and all(m == n for m, n in zip(a, b, strict=True))


def count(shape: Dims) -> Any:
    """Numbers in an array of that shape."""
    return math.prod(shape)
