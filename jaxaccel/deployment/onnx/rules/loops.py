"""Loops and branches, each with a graph of its own: Scan, Loop and If."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.interpret.jaxprs import Place, scan_parts, split_consts
from jaxaccel.deployment.onnx.exporter import LOOPS, Exporter
from jaxaccel.deployment.onnx.graph import Graph
from jaxaccel.deployment.onnx.tensor import Tensor, dtype_in_file, plain

MAX_UNROLLED = 64
"""Loops over the layers of a model are written out up to so many: each layer's weights are then constants."""
Paths = list[str | None]
Outs = tuple[Sequence[Any], Paths]


def writes(name: str) -> Callable[[Callable[..., Outs]], Callable[..., Outs]]:
    """Adds a function to `LOOPS` for a primitive."""

    def add(function: Callable[..., Outs]) -> Callable[..., Outs]:
        LOOPS[name] = function
        return function

    return add


@writes("scan")
def _scan(e: Exporter, eqn: Any, values: list[Any], paths: Paths, place: Place) -> Outs:
    p, n = eqn.params, len(eqn.invars)
    n_consts, n_carry = scan_parts(p, n)
    rows = values[n_consts + n_carry :]
    inner, consts = split_consts(p["jaxpr"])
    place = Place(place.path, place.trips and place.trips * p["length"])
    if p["length"] == 1 or (p["length"] <= MAX_UNROLLED and any(not isinstance(x, Tensor) and np.size(x) and len(
            x.shape) > 1 for x in rows)):  # fmt: skip
        return _unrolled(e, eqn, values, paths, place, n_consts, n_carry)
    b = e.builder
    init = [
        _carried(e, x, var)
        for x, var in zip(values[n_consts : n_consts + n_carry], inner.invars[n_consts:], strict=False)
    ]
    rows = [b.full(_dense(x)) for x in rows]
    with b.body() as body:
        given = [_input(e, var) for var in inner.invars[n_consts:]]
        outs, _, _ = e.evaluate(
            inner, consts, [*values[:n_consts], *given], [*paths[:n_consts], *[None] * len(given)], place
        )
        for x in outs:
            b.output(_dense(x))
    n_rows, n_results = len(rows), len(outs) - n_carry
    back = int(p["reverse"])
    found = b.nodes(
        "Scan", *init, *rows, results=len(outs), body=body, num_scan_inputs=n_rows,
        scan_input_directions=[back] * n_rows, scan_output_directions=[back] * n_results,
    )  # fmt: skip
    return _results(eqn, found)


def _unrolled(
    e: Exporter, eqn: Any, values: list[Any], paths: Paths, place: Place, n_consts: int, n_carry: int
) -> Outs:
    """A loop written out: the rows of constants are constants, and sites keep the name that they have in the loop."""
    inner, consts = split_consts(eqn.params["jaxpr"])
    length, b = eqn.params["length"], e.builder
    carry, held = values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
    held = [x.rows() if is_compressed(x) else x for x in held]
    steps: list[list[Any]] = []
    for k in range(length) if not eqn.params["reverse"] else reversed(range(length)):
        now = [_row(e, x, k) for x in held]
        outs, _, _ = e.evaluate(inner, consts, [*values[:n_consts], *carry, *now], paths, place)
        carry = outs[:n_carry]
        steps.append(outs[n_carry:])
    steps = steps[::-1] if eqn.params["reverse"] else steps
    stacked = []
    for var, parts in zip(eqn.outvars[n_carry:], zip(*steps, strict=True), strict=True):
        each = [b.node("Unsqueeze", b.full(_dense(x)), b.integers(0)) for x in parts]
        name = each[0] if len(each) == 1 else b.node("Concat", *each, axis=0)
        stacked.append(plain(name, var.aval.shape, var.aval.dtype))
    return [*carry, *stacked], [None] * len(eqn.outvars)


def _row(e: Exporter, x: Any, k: int) -> Any:
    """Row `k` of an array, of each part of a compressed one, or of a tensor."""
    if is_compressed(x):
        return jax.tree.map(lambda leaf: leaf[k], x)
    if not isinstance(x, Tensor):
        return x[k]
    name = e.builder.node("Gather", e.builder.full(x), e.builder.constant(np.array(k, np.int64)), axis=0)
    return plain(name, x.shape[1:], x.dtype)


@writes("while")
def _while(e: Exporter, eqn: Any, values: list[Any], paths: Paths, place: Place) -> Outs:
    p, b = eqn.params, e.builder
    n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
    test, test_consts = split_consts(p["cond_jaxpr"])
    body, body_consts = split_consts(p["body_jaxpr"])
    of_test, of_body, start = values[:n_test], values[n_test : n_test + n_body], values[n_test + n_body :]
    variables = body.invars[n_body:]

    def going(carry: Sequence[Any]) -> Any:
        known = [*paths[:n_test], *[None] * len(carry)]
        outs, _, _ = e.evaluate(test, test_consts, [*of_test, *carry], known, Place((*place.path, 0), None))
        return _dense(outs[0])

    init = [_carried(e, x, var) for x, var in zip(start, variables, strict=True)]
    begins = b.full(
        going([plain(name, v.aval.shape, v.aval.dtype) for name, v in zip(init, variables, strict=True)])
    )
    with b.body() as graph:
        b.input(b.name("trip"), (), np.int64)
        b.input(b.name("going"), (), np.bool_)
        carry = [_input(e, var) for var in variables]
        known = [*paths[n_test : n_test + n_body], *[None] * len(carry)]
        outs, _, _ = e.evaluate(body, body_consts, [*of_body, *carry], known, Place((*place.path, 1), None))
        b.output(going(outs))
        for x in outs:
            b.output(_dense(x))
    found = b.nodes("Loop", "", begins, *init, results=len(init), body=graph)
    return _results(eqn, found)


@writes("cond")
def _cond(e: Exporter, eqn: Any, values: list[Any], paths: Paths, place: Place) -> Outs:
    which, *operands = values
    branches = eqn.params["branches"]
    if not isinstance(which, Tensor):
        jaxpr, consts = split_consts(branches[int(np.clip(which, 0, len(branches) - 1))])
        outs, _, _ = e.evaluate(jaxpr, consts, operands, paths[1:], place)
        return outs, [None] * len(outs)
    graphs = []
    for k, branch in enumerate(branches):
        jaxpr, consts = split_consts(branch)
        with e.builder.body() as graph:
            outs, _, _ = e.evaluate(jaxpr, consts, operands, paths[1:], place.inside(k))
            for x in outs:
                e.builder.output(_dense(x))
        graphs.append(graph)
    return _results(eqn, _choose(e, which, graphs, 0, len(eqn.outvars)))


def _choose(e: Exporter, which: Tensor, graphs: list[Graph], first: int, results: int) -> tuple[str, ...]:
    """Branch `first` where the index says so or less, else one of those behind it."""
    b = e.builder
    number = b.constant(np.array(first, dtype_in_file(which.dtype)))
    boolean = which.dtype == bool
    chosen = b.node("Not", which.name) if boolean else b.node("LessOrEqual", which.name, number)
    if len(graphs) == first + 2:
        other = graphs[-1]
    else:
        with b.body() as other:
            for name, value in zip(
                _choose(e, which, graphs, first + 1, results), graphs[0].outputs, strict=True
            ):
                b.output(plain(name, value.shape, value.dtype))
    return b.nodes("If", chosen, results=results, then_branch=graphs[first], else_branch=other)


def _dense(x: Any) -> Any:
    return x.materialize() if is_compressed(x) else x


def _carried(e: Exporter, x: Any, variable: Any) -> str:
    """What a loop starts from, in the dtype and shape that the body carries."""
    x = _dense(x)
    dtype = dtype_in_file(variable.aval.dtype)
    return e.builder.full(x if isinstance(x, Tensor) else np.asarray(x, dtype))


def _input(e: Exporter, variable: Any) -> Tensor:
    return e.builder.input(e.builder.name("carried"), variable.aval.shape, variable.aval.dtype)


def _results(eqn: Any, names: Sequence[str]) -> Outs:
    outs = [plain(name, v.aval.shape, v.aval.dtype) for name, v in zip(names, eqn.outvars, strict=True)]
    return outs, [None] * len(outs)
