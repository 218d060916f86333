"""Which positions along which axes of a function's parameters belong together, read off its program.

The program is walked once with, for each value, a label (`labels`) of each axis; each operation unites nodes
or fixes them (`rules`). What is united stands or falls together, whatever the function's classes are called.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxaccel.core.interpret.jaxprs import is_literal, read_meaning, scan_parts, split_consts, sub_jaxprs
from jaxaccel.transforms.params.channels.labels import FIXED, Label, Nodes, fix_axes
from jaxaccel.transforms.params.channels.rules import RULES, repeat

ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "pow",
    "pvary", "pcast", "real", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sharding_constraint",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square",
    "stop_gradient", "sub", "tan", "tanh", "xor",
))  # fmt: skip
REDUCTIONS = frozenset((
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
    "reduce_xor",
))  # fmt: skip


Place = tuple[int, int, int]
"""Number of a parameter, axis, position."""


def trace_channels(
    f: Callable[..., Any], params: Sequence[jax.ShapeDtypeStruct], *args: Any
) -> tuple[list[list[Place]], dict[Place, str]]:
    """Sets of positions that can only be removed together, and why others cannot be.

    Args:
      f: called as ``f(params, *args)`` with a list of arrays.
      params: their shapes.
      args: the rest, shapes or arrays.

    Returns:
      The sets, in the order in which they first appear; and which operation needs each position that is in none.
    """
    jaxpr, consts = split_consts(jax.make_jaxpr(f)(list(params), *args))
    nodes = Nodes()
    given = [Label([nodes.new(n) for n in x.shape], param=True) for x in params]
    others = [fix_axes(var.aval.shape) for var in jaxpr.invars[len(params) :]]
    for out in _walk(jaxpr, [fix_axes(np.shape(c)) for c in consts], [*given, *others], nodes):
        nodes.because = "the result"
        nodes.fix_all(out)
    reasons: dict[int, str] = {}
    for node, why in nodes.fixed.items():
        reasons.setdefault(nodes.root(node), why)
    sets: dict[int, list[Place]] = {}
    whole: dict[Place, str] = {}
    for number, label in enumerate(given):
        for axis, ids in enumerate(label.axes):
            for position, node in enumerate(ids if ids is not None else ()):
                root = nodes.root(int(node))
                if root in reasons:
                    whole[number, axis, position] = reasons[root]
                else:
                    sets.setdefault(root, []).append((number, axis, position))
    return list(sets.values()), whole


def _walk(jaxpr: Any, consts: Sequence[Label], inputs: Sequence[Label], nodes: Nodes) -> list[Label]:
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Label:
        return fix_axes(np.shape(atom.val)) if is_literal(atom) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _equation(eqn, [read(atom) for atom in eqn.invars], nodes), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, labels: list[Label], nodes: Nodes) -> list[Label]:
    name, params, _ = read_meaning(eqn)
    nodes.because = name
    shapes = [tuple(var.aval.shape) for var in eqn.outvars]
    if name in ELEMENTWISE:
        outs = [_elementwise(eqn, labels, shapes[0], nodes)] if len(shapes) == 1 else labels
    elif name in REDUCTIONS:
        for axis in params["axes"]:
            nodes.fix(labels[0].axes[axis])
        outs = [Label([x for i, x in enumerate(labels[0].axes) if i not in params["axes"]])]
    elif name in RULES:
        outs = [RULES[name](params, [tuple(a.aval.shape) for a in eqn.invars], shapes[0], labels, nodes)]
    elif name == "split":
        outs = _split(params, labels[0], nodes)
    elif name in ("scan", "while", "cond"):
        outs = {"scan": _scan, "while": _while, "cond": _cond}[name](params, labels, nodes)
    elif inner := [s for s in sub_jaxprs(params) if len(split_consts(s)[0].invars) == len(labels)]:
        jaxpr, consts = split_consts(inner[0])
        outs = _walk(jaxpr, [fix_axes(np.shape(c)) for c in consts], labels, nodes)
    elif name == "random_bits":
        outs = [Label([None] * len(shapes[0]))]
    else:  # nobody knows what it does with positions
        for label in labels:
            nodes.fix_all(label)
        outs = [fix_axes(shape) for shape in shapes]
    for label, shape in zip(outs, shapes, strict=True):
        assert [n if x is None else len(x) for x, n in zip(label.axes, shape, strict=True)] == list(shape), (
            name
        )
    return outs


def _elementwise(eqn: Any, labels: list[Label], shape: tuple[int, ...], nodes: Nodes) -> Label:
    """One operation on all positions; an operand with an axis of size 1 is repeated along it."""
    found = zip(labels, (atom.aval.shape for atom in eqn.invars), strict=True)
    same = [repeat(label, size, shape, nodes) for label, size in found if len(size) == len(shape)]
    scaled = eqn.primitive.name in ("mul", "div") and all(x.param for x in same)  # zeros stay zeros
    return Label(nodes.united(same).axes, scaled or (len(labels) == 1 and same[0].param))


def _split(p: Any, label: Label, nodes: Nodes) -> list[Label]:
    """Pieces of equal size lose equally many: the function cuts what is left into equal pieces again."""
    sizes, x = p["sizes"], label.axes[p["axis"]]
    if len(set(sizes)) == 1:
        nodes.unite_rows(None if x is None else x.reshape(len(sizes), -1))
    pieces = [None] * len(sizes) if x is None else np.split(x, np.cumsum(sizes)[:-1])
    return [Label([piece if i == p["axis"] else a for i, a in enumerate(label.axes)]) for piece in pieces]


def _scan(p: Any, labels: list[Label], nodes: Nodes) -> list[Label]:
    n_consts, n_carry = scan_parts(p, len(labels))
    jaxpr, consts = split_consts(p["jaxpr"])
    rows = []
    for label in labels[n_consts + n_carry :]:
        nodes.fix(label.axes[0])
        rows.append(Label(label.axes[1:], label.param))
    carry = labels[n_consts : n_consts + n_carry]
    while True:
        before = nodes.changes
        outs = _walk(
            jaxpr, [fix_axes(np.shape(c)) for c in consts], [*labels[:n_consts], *carry, *rows], nodes
        )
        carry = [nodes.united([a, b]) for a, b in zip(carry, outs[:n_carry], strict=True)]
        if nodes.changes == before:
            length = np.full(p["length"], FIXED)
            return [*carry, *(Label([length, *y.axes]) for y in outs[n_carry:])]


def _while(p: Any, labels: list[Label], nodes: Nodes) -> list[Label]:
    n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
    test, body, carry = labels[:n_test], labels[n_test : n_test + n_body], labels[n_test + n_body :]
    while True:
        before = nodes.changes
        for jaxpr, given in ((p["cond_jaxpr"], test), (p["body_jaxpr"], body)):
            inner, consts = split_consts(jaxpr)
            outs = _walk(inner, [fix_axes(np.shape(c)) for c in consts], [*given, *carry], nodes)
        carry = [nodes.united([a, b]) for a, b in zip(carry, outs, strict=True)]
        if nodes.changes == before:
            return carry


def _cond(p: Any, labels: list[Label], nodes: Nodes) -> list[Label]:
    every = []
    for branch in p["branches"]:
        jaxpr, consts = split_consts(branch)
        every.append(_walk(jaxpr, [fix_axes(np.shape(c)) for c in consts], labels[1:], nodes))
    return [nodes.united(outs) for outs in zip(*every, strict=True)]
