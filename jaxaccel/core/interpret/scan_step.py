"""The step of a scan: what it reads, computes and hands on, and which of its products can leave the loop."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.extend import core as jcore

from jaxaccel.core.interpret.jaxprs import LAYOUT, has_primitive, read, read_meaning, scan_parts, split_consts
from jaxaccel.core.interpret.merge_products import Merged, count_rows, is_product, merge

Move = Literal["before", "after", "merge"]
"""What is to be done with products of a loop: compute that of an input ``before`` it, sum one up ``after`` it, or
``merge`` several within it."""
Worth = Callable[[Move, int, int], bool]
"""``worth(move, rows, kept)``: whether it is to be done with a product of so many rows at each step, if all steps
together keep so many bytes for it."""
LINEAR = frozenset({"transpose", "reshape", "squeeze", "expand_dims", "copy", "copy_p"})
"""What may lie between a product and its sum: it can as well follow the sum."""


@dataclasses.dataclass(frozen=True)
class Sum:
    """A carry that only collects a product: ``carry + layout(product)``."""

    carry: int
    product: int
    """Number of its equation."""
    layout: tuple[int, ...]
    """Numbers of the equations between the product and the sum, in their order."""
    total: int

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of all its equations."""
        return (self.product, *self.layout, self.total)


class Step:
    """What a scan reads, computes and hands on."""

    def __init__(self, params: Mapping[str, Any], inputs: int, inside: Callable[[Any], Any]) -> None:
        self.jaxpr, self.closed = split_consts(params["jaxpr"])
        if has_primitive(self.jaxpr, "scan"):
            shapes = [v.aval for v in self.jaxpr.invars]
            self.jaxpr, self.closed = split_consts(jax.make_jaxpr(inside(self._body))(*shapes))
        self.kept: dict[Any, int] = {}  # bytes of what all steps together keep for the products outside
        n, carry = scan_parts(params, inputs)
        variables = self.jaxpr.invars
        self.consts, self.carry, self.xs = variables[:n], variables[n : n + carry], variables[n + carry :]
        self.length, self.params = params["length"], params
        self.made_by = {v: i for i, eqn in enumerate(self.jaxpr.eqns) for v in eqn.outvars}
        self.uses: dict[Any, int] = {}
        for atom in (*(a for eqn in self.jaxpr.eqns for a in eqn.invars), *self.jaxpr.outvars):
            if not isinstance(atom, jcore.Literal):
                self.uses[atom] = self.uses.get(atom, 0) + 1
        self.kinds: dict[Any, str] = dict.fromkeys((*self.jaxpr.constvars, *self.consts), "constant")
        self.kinds |= dict.fromkeys(self.xs, "row")
        for eqn in self.jaxpr.eqns:
            of = set(map(self._kind, eqn.invars))
            kind = "computed"
            if not eqn.effects and of <= {"constant"}:
                kind = "constant"
            elif not eqn.effects and eqn.primitive.name in LAYOUT and of <= {"constant", "row"}:
                kind = "row"
            self.kinds.update(dict.fromkeys(eqn.outvars, kind))

    def _body(self, *values: Any) -> list[Any]:
        env = dict(zip(self.jaxpr.constvars, self.closed, strict=True))
        env |= dict(zip(self.jaxpr.invars, values, strict=True))
        evaluate_equations(enumerate(self.jaxpr.eqns), env)
        return [read(v, env) for v in self.jaxpr.outvars]

    def before(self, worth: Worth) -> list[int]:
        """Numbers of the products of an input, in whatever layout, with what the loop does not change."""
        return [
            i
            for i, eqn in enumerate(self.jaxpr.eqns)
            if is_product(eqn)
            and sorted(map(self._kind, eqn.invars)) == ["constant", "row"]
            and self._fits("before", count_rows(eqn, self.is_constant), eqn.outvars, worth)
        ]

    def after(self, worth: Worth) -> list[Sum]:
        """The carries that only collect products."""
        found = (self._sum(k, worth) for k in range(len(self.carry)))
        return [one for one in found if one is not None]

    def merged(self, eqns: Sequence[tuple[int, Any]], worth: Worth) -> list[Merged]:
        """The products among these that are one with others."""
        few = [
            (i, eqn)
            for i, eqn in eqns
            if not is_product(eqn) or worth("merge", max(1, count_rows(eqn, self.is_constant)), 0)
        ]
        return merge(few, self.is_constant, self.uses)

    def is_constant(self, atom: Any) -> bool:
        """Whether the loop does not change it."""
        return self._kind(atom) == "constant"

    def _kind(self, atom: Any) -> str:
        """``constant``, ``row`` (an input of the step, in whatever layout) or ``computed``."""
        return "constant" if isinstance(atom, jcore.Literal) else self.kinds.get(atom, "computed")

    def _fits(self, move: Move, rows: int, variables: Iterable[Any], worth: Worth) -> bool:
        """Whether a product is worth it that keeps these of all steps, beside what is kept already."""
        more = {v: self.length * v.aval.size * v.aval.dtype.itemsize for v in variables}
        if not worth(move, rows, sum((self.kept | more).values())):
            return False
        self.kept |= more
        return True

    def _sum(self, k: int, worth: Worth) -> Sum | None:
        eqns, carry, out = self.jaxpr.eqns, self.carry[k], self.jaxpr.outvars[k]
        total = None if isinstance(out, jcore.Literal) else self.made_by.get(out)
        if total is None or eqns[total].primitive.name not in ("add", "add_any"):
            return None
        terms = [atom for atom in eqns[total].invars if atom is not carry]
        if len(terms) != 1 or self.uses[carry] != 1 or self.uses[out] != 1:
            return None
        layout: list[int] = []
        i, atom = -1, terms[0]
        while not isinstance(atom, jcore.Literal) and self.uses[atom] == 1 and atom in self.made_by:
            i = self.made_by[atom]
            if eqns[i].primitive.name not in LINEAR or len(eqns[i].invars) != 1:
                break
            layout.append(i)
            atom = eqns[i].invars[0]
        same = i >= 0 and not isinstance(atom, jcore.Literal) and self.uses[atom] == 1
        if not same or not is_product(eqns[i]) or any(self.is_constant(a) for a in eqns[i].invars):
            return None
        lhs, _ = (atom.aval for atom in eqns[i].invars)
        rows = math.prod(lhs.shape[axis] for axis in read_meaning(eqns[i])[1]["dimension_numbers"][0][0])
        stacked = [v for v in eqns[i].invars if v not in set(self.xs)]
        fits = self._fits("after", rows, stacked, worth)
        return Sum(k, i, tuple(reversed(layout)), total) if fits else None

    def ancestors(self, atoms: Iterable[Any]) -> list[int]:
        """Numbers of all equations that make these, in their order."""
        found: set[int] = set()
        waiting = list(atoms)
        while waiting:
            atom = waiting.pop()
            i = None if isinstance(atom, jcore.Literal) else self.made_by.get(atom)
            if i is not None and i not in found:
                found.add(i)
                waiting += self.jaxpr.eqns[i].invars
        return sorted(found)


def evaluate_equations(
    eqns: Iterable[tuple[int, Any]], env: dict[Any, Any], merged: Iterable[tuple[Merged, Any]] = ()
) -> None:
    """Adds the results of numbered equations to `env`; some are merged, with the matrices that were joined for them."""
    at = {one.at: (one, matrix) for one, matrix in merged}
    skipped = {i for one, _ in at.values() for i in one.members}
    for i, eqn in eqns:
        if i in at:
            one, matrix = at[i]
            one.run(matrix, env)
        if i in skipped:
            continue
        with eqn.ctx.manager:
            values = [read(atom, env) for atom in eqn.invars]
            outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        env.update(zip(eqn.outvars, outs if eqn.primitive.multiple_results else [outs], strict=True))
