"""Scans with their matrix products taken out: into one product before the loop, or one after it.

A recurrent network multiplies each input of its sequence by the same weights, and the gradient of these weights is a
sum over the sequence. As written, both are a small product at each step; the first can be one large product of the
whole sequence before the loop, and the second one after it (Appleyard et al. 2016, arXiv:1604.01946).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jcore

from jaxaccel.interpret.jaxprs import LAYOUT, holds, meaning, parts, read, scan_parts
from jaxaccel.interpret.siblings import Merged, is_product, merge, multiply, rows_of, signature

Worth = Callable[[int, int], bool]
"""``worth(rows, kept)``: whether a product of so many rows at each step is to leave the loop, or to be one with others,
if all steps together keep so many bytes for it."""
LINEAR = frozenset({"transpose", "reshape", "squeeze", "expand_dims", "copy", "copy_p"})
"""What may lie between a product and its sum: it can as well follow the sum."""


@dataclasses.dataclass(frozen=True)
class Hoisted:
    """The results of a scan, how many products now are before and after it, and how many of those left are merged."""

    outs: list[Any]
    before: int
    after: int
    merged: int


@dataclasses.dataclass(frozen=True)
class _Sum:
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


def hoist(
    params: Mapping[str, Any], values: Sequence[Any], worth: Worth, inside: Callable[[Any], Any]
) -> Hoisted | None:
    """A scan on these operands with all products outside that can be and are `worth` it; None where there are none.

    `inside` is a transformation of functions, for loops within the loop.
    """
    loop = _Loop(params, len(values), inside)
    before, sums = loop.before(worth), loop.after(worth)
    gone = {*before, *(i for one in sums for i in one.members)}
    left = [(i, eqn) for i, eqn in enumerate(loop.jaxpr.eqns) if i not in gone]
    merged = loop.merged(left, worth)
    return loop.run(values, before, sums, left, merged) if before or sums or merged else None


class _Loop:
    """What a scan reads, computes and hands on."""

    def __init__(self, params: Mapping[str, Any], inputs: int, inside: Callable[[Any], Any]) -> None:
        self.jaxpr, self.closed = parts(params["jaxpr"])
        if holds(self.jaxpr, "scan"):
            shapes = [v.aval for v in self.jaxpr.invars]
            self.jaxpr, self.closed = parts(jax.make_jaxpr(inside(self._body))(*shapes))
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
        _evaluate(enumerate(self.jaxpr.eqns), env)
        return [read(v, env) for v in self.jaxpr.outvars]

    def before(self, worth: Worth) -> list[int]:
        """Numbers of the products of an input, in whatever layout, with what the loop does not change."""
        return [
            i
            for i, eqn in enumerate(self.jaxpr.eqns)
            if is_product(eqn)
            and sorted(map(self._kind, eqn.invars)) == ["constant", "row"]
            and self._fits(rows_of(eqn, self._is_constant), eqn.outvars, worth)
        ]

    def after(self, worth: Worth) -> list[_Sum]:
        """The carries that only collect products."""
        found = (self._sum(k, worth) for k in range(len(self.carry)))
        return [one for one in found if one is not None]

    def merged(self, eqns: Sequence[tuple[int, Any]], worth: Worth) -> list[Merged]:
        """The products among these that are one with others."""
        few = [
            (i, eqn)
            for i, eqn in eqns
            if not is_product(eqn) or worth(max(1, rows_of(eqn, self._is_constant)), 0)
        ]
        return merge(few, self._is_constant, self.uses)

    def run(
        self,
        values: Sequence[Any],
        before: Sequence[int],
        sums: Sequence[_Sum],
        left: Sequence[tuple[int, Any]],
        merged: Sequence[Merged],
    ) -> Hoisted:
        """The loop with the equations that are `left`, some of them merged, and the products before and after it."""
        eqns, n, m = self.jaxpr.eqns, len(self.consts), len(self.carry)
        constants = dict(zip(self.jaxpr.constvars, self.closed, strict=True))
        constants |= dict(zip(self.consts, values[:n], strict=True))
        init, xs = values[n : n + m], values[n + m :]
        early = [eqns[i].outvars[0] for i in before]
        needed = [(i, eqns[i]) for i in self._ancestors(v for i in before for v in eqns[i].outvars)]
        joined = merge(needed, self._is_constant, self.uses)
        matrices = [one.matrix(self._evaluated(one, constants)) for one in (*joined, *merged)]

        def products(*rows: Any) -> list[Any]:
            env = constants | dict(zip(self.xs, rows, strict=True))
            _evaluate(needed, env, zip(joined, matrices, strict=False))
            return [env[v] for v in early]

        ready = jax.vmap(products)(*xs) if early else []
        kept = [k for k in range(m) if k not in {one.carry for one in sums}]
        factors = dict.fromkeys(v for one in sums for v in eqns[one.product].invars if v not in set(self.xs))

        def step(carry: list[Any], rows: list[Any]) -> tuple[list[Any], list[Any]]:
            env = constants | dict(zip([self.carry[k] for k in kept], carry, strict=True))
            env |= dict(zip([*self.xs, *early], rows, strict=True))
            _evaluate(left, env, zip(merged, matrices[len(joined) :], strict=True))
            outs = self.jaxpr.outvars
            return [read(outs[k], env) for k in kept], [read(v, env) for v in (*outs[m:], *factors)]

        options = {name: self.params[name] for name in ("reverse", "length", "unroll")}
        ends, stacked = jax.lax.scan(step, [init[k] for k in kept], [*xs, *ready], **options)
        ys, rows = stacked[: len(stacked) - len(factors)], stacked[len(stacked) - len(factors) :]
        sequences = dict(zip(self.xs, xs, strict=True)) | dict(zip(factors, rows, strict=True))
        outs: list[Any] = [None] * m
        for k, value in zip(kept, ends, strict=True):
            outs[k] = value
        for k, total in self._totals(sums, sequences):
            outs[k] = init[k] + total
        return Hoisted([*outs, *ys], len(before), len(sums), sum(len(one.products) for one in merged))

    def _evaluated(self, one: Merged, constants: Mapping[Any, Any]) -> dict[Any, Any]:
        """`constants` with what the matrices of `one` are made of."""
        env = dict(constants)
        matrices = (eqn.invars[one.side] for eqn in one.products)
        _evaluate([(i, self.jaxpr.eqns[i]) for i in self._ancestors(matrices)], env)
        return env

    def _is_constant(self, atom: Any) -> bool:
        return self._kind(atom) == "constant"

    def _kind(self, atom: Any) -> str:
        """``constant``, ``row`` (an input of the step, in whatever layout) or ``computed``."""
        return "constant" if isinstance(atom, jcore.Literal) else self.kinds.get(atom, "computed")

    def _fits(self, rows: int, variables: Iterable[Any], worth: Worth) -> bool:
        """Whether a product is worth it that keeps these of all steps, beside what is kept already."""
        more = {v: self.length * v.aval.size * v.aval.dtype.itemsize for v in variables}
        if not worth(rows, sum((self.kept | more).values())):
            return False
        self.kept |= more
        return True

    def _sum(self, k: int, worth: Worth) -> _Sum | None:
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
        if not same or not is_product(eqns[i]) or any(self._is_constant(a) for a in eqns[i].invars):
            return None
        lhs, _ = (atom.aval for atom in eqns[i].invars)
        rows = math.prod(lhs.shape[axis] for axis in meaning(eqns[i])[1]["dimension_numbers"][0][0])
        stacked = [v for v in eqns[i].invars if v not in set(self.xs)]
        return _Sum(k, i, tuple(reversed(layout)), total) if self._fits(rows, stacked, worth) else None

    def _totals(self, sums: Sequence[_Sum], sequences: Mapping[Any, Any]) -> Iterator[tuple[int, Any]]:
        """(carry, sum over all steps) of each: its product, summed over the axis of steps as well.

        Those with one operand in common are one product.
        """
        eqns, groups = self.jaxpr.eqns, {}
        for one in sums:
            eqn = eqns[one.product]
            lhs, rhs = eqn.invars
            contracting, batch = meaning(eqn)[1]["dimension_numbers"]
            plain = rhs.aval.ndim == 2 and len(contracting[1]) == 1 and not batch[1]
            alone = None if plain else one.product
            groups.setdefault((lhs, signature(eqn), alone), []).append(one)
        for (lhs, _, _), group in groups.items():
            first = eqns[group[0].product]
            contracting, batch = meaning(first)[1]["dimension_numbers"]
            summed, kept = ([tuple(a + 1 for a in axes) for axes in pair] for pair in (contracting, batch))
            numbers = (((0, *summed[0]), (0, *summed[1])), (kept[0], kept[1]))
            others = [sequences[eqns[one.product].invars[1]] for one in group]
            axis = 2 if summed[1] == (1,) else 1
            joined = others[0] if len(group) == 1 else jnp.concatenate(others, axis)
            out = multiply(first, sequences[lhs], joined, numbers)
            start = 0
            for one, other in zip(group, others, strict=True):
                var = eqns[one.product].outvars[0]
                stop = start + other.shape[axis]
                env = {
                    var: out if len(group) == 1 else jax.lax.slice_in_dim(out, start, stop, axis=out.ndim - 1)
                }
                start = stop
                _evaluate([(i, eqns[i]) for i in one.layout], env)
                yield one.carry, env[eqns[one.layout[-1]].outvars[0] if one.layout else var]

    def _ancestors(self, atoms: Iterable[Any]) -> list[int]:
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


def _evaluate(
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
