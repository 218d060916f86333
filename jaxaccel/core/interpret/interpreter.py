"""One evaluation of a program, equation by equation, with the rules of a transformation.

Loops, branches, nested calls and custom derivatives are entered (`BODIES`). Values may be compressed arrays
(`arrays.register`), which reach the rules as they are: what has no rule for one gets it materialized, and that is
recorded.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jcore

from jaxaccel.core import sites
from jaxaccel.core.interpret.bilinear import bilinear
from jaxaccel.core.interpret.chains import Fused, Program
from jaxaccel.core.interpret.compressed import ARRAY_RULES, as_shape, is_compressed
from jaxaccel.core.interpret.jaxprs import LAYOUT, Place, name_rule, read_meaning, split_consts, sub_jaxprs
from jaxaccel.core.interpret.transformation import Rule, Transformation
from jaxaccel.core.sites import Record, Site
from jaxaccel.errors import UserError

BODIES: dict[str, Callable[..., Any]] = {}
"""By primitive: how to enter it. `interpret.bodies` and `interpret.derivatives` fill it."""


class Interpreter:
    """One evaluation of one program."""

    def __init__(self, t: Transformation) -> None:
        self.t = t
        self.records: dict[tuple[Any, ...], Record] = {}
        self._names: dict[tuple[int, ...], str] = {}
        self._uses: dict[str, int] = {}
        self._replaced: dict[int, Any] = {}
        self._facts: dict[
            int, tuple[Any, Any]
        ] = {}  # by id, with the value itself, so that the id stays its own
        self._concerned: dict[int, tuple[Any, bool]] = {}

    def evaluate(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        values: Sequence[Any],
        paths: Sequence[str | None],
        place: Place,
    ) -> tuple[list[Any], dict[str, Any], list[str | None]]:
        """Results, what was observed, and the parameter path of each result, of an open jaxpr."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, values, strict=True))
        known: dict[Any, str | None] = dict(zip(jaxpr.invars, paths, strict=True))
        observed: dict[str, Any] = {}
        # What is learned inside is about values that end with this body.
        facts, self._facts = self._facts, dict(self._facts)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jcore.Literal) else env[atom]

        def path_of(atom: Any) -> str | None:
            return None if isinstance(atom, jcore.Literal) else known.get(atom)

        fused = self.t.fuse(Program(jaxpr)) if self.t.fuse else []
        at, skipped = {one.last: one for one in fused}, {n for one in fused for n in one.members}
        for number, eqn in enumerate(jaxpr.eqns):
            if number in skipped and number not in at:
                continue
            with eqn.ctx.manager:
                if number in at:
                    outs = [self._fused(jaxpr, at[number], read, path_of, place, observed)]
                    out_paths: Sequence[str | None] = [None]
                else:
                    operands = [read(atom) for atom in eqn.invars]
                    operand_paths = [path_of(atom) for atom in eqn.invars]
                    outs, out_paths = self._equation(
                        eqn, operands, operand_paths, place.inside(number), observed
                    )
            env.update(zip(eqn.outvars, outs, strict=True))
            for operand, value in self._replaced.items():
                if not isinstance(eqn.invars[operand], jcore.Literal):
                    env[eqn.invars[operand]] = value
            self._replaced = {}
            known.update(zip(eqn.outvars, out_paths, strict=True))
        self._facts = facts
        return (
            [read(atom) for atom in jaxpr.outvars],
            observed,
            [path_of(atom) for atom in jaxpr.outvars],
        )

    def dense(self, x: Any, place: Place, why: str = "is a result", path: str | None = None) -> Any:
        """`x` itself, or the dense array that it stands for, which is recorded; `path` is that of the parameter."""
        if not is_compressed(x):
            return x
        self.note("materialized", place, type(x).__name__, why, x.shape, path=path)
        return x.materialize()

    def finish(self) -> None:
        """Publishes the records.

        Raises:
          UserError: the transformation is strict and something could not be done.
        """
        run = sites.Run(self.t.name, self.records)
        sites.publish(run)
        problems = [f"{r.name}: {r.reason}" for r in run.records if r.kind in sites.LOST]
        if self.t.strict and problems:
            raise UserError(f"{self.t.name}(strict=True): " + "; ".join(problems))

    def _equation(
        self, eqn: Any, operands: list[Any], paths: list[str | None], place: Place, observed: dict[str, Any]
    ) -> tuple[Sequence[Any], Sequence[str | None]]:
        rule, name = self.t.rules.get(name_rule(eqn)), eqn.primitive.name
        compressed = [x for x in operands if is_compressed(x)]
        if rule is not None and eqn.outvars:
            out = self._ask(rule, eqn, operands, paths, place, observed, self._name(eqn, paths, place))
            if out is not NotImplemented:
                outs = out if isinstance(out, list) else [out]
                return outs, [None] * len(outs)
        for x in compressed:
            array_rule_ = ARRAY_RULES[type(x)].get(name)
            if array_rule_ is not None:
                out = self._ask(array_rule_, eqn, operands, paths, place, observed, name)
                if out is not NotImplemented:
                    return [out], [paths[0] if name in LAYOUT else None]
        entered = bool(compressed) or self._concerns(eqn)
        if entered and name in BODIES:
            return BODIES[name](self, eqn, operands, paths, place, observed)
        if entered and sub_jaxprs(eqn.params) and self._concerns(eqn):
            self.note("not entered", place, name, "has no way in for transformations")
        why = f"{name} has no rule for it"
        dense = [self.dense(x, place, why, path) for x, path in zip(operands, paths, strict=True)]
        outs = eqn.primitive.bind(*dense, **eqn.primitive.get_bind_params(eqn.params))
        outs = outs if eqn.primitive.multiple_results else [outs]
        follows = name in LAYOUT
        return outs, [paths[0] if follows and paths else None] * len(outs)

    def _fused(
        self, jaxpr: Any, one: Fused, read: Callable[[Any], Any], path_of: Callable[[Any], str | None],
        place: Place, observed: dict[str, Any],
    ) -> Any:  # fmt: skip
        """The result of a chain."""
        eqn, place = jaxpr.eqns[one.product], place.inside(one.product)
        paths = [path_of(atom) for atom in eqn.invars]
        values = [read(atom) for atom in one.operands]
        name = self._name(eqn, paths, place)
        site = self._make_site(eqn, [read(atom) for atom in eqn.invars], paths, place, observed, name)
        with jax.named_scope(f"{self.t.name}:{name}"):
            return one.rule(site, Program(jaxpr).evaluate(one.members, one.operands), *values)

    def _ask(
        self,
        rule: Rule,
        eqn: Any,
        operands: list[Any],
        paths: list[str | None],
        place: Place,
        observed: dict[str, Any],
        name: str,
    ) -> Any:
        site = self._make_site(eqn, operands, paths, place, observed, name)
        # The name reaches the metadata of the HLO, where `explain` finds it again.
        with jax.named_scope(f"{self.t.name}:{name}"):
            out = rule(site, *operands[: len(site.inputs)])
            if out is NotImplemented or is_compressed(out) or isinstance(out, list):
                return out
            return out.astype(site.output.dtype) if out.dtype != site.output.dtype else out

    def _make_site(
        self, eqn: Any, operands: list[Any], paths: list[str | None], place: Place, observed: dict[str, Any],
        name: str,
    ) -> Site:  # fmt: skip
        primitive, params, narrowed = read_meaning(eqn)
        original = eqn.primitive if narrowed is None else eqn.params["product"]
        # What a narrowed product takes besides its two operands is its own affair: a random key.
        own = [] if narrowed is None else operands[sites.OPERANDS.get(primitive, 2) :]
        used = len(operands) - len(own)

        def bind(*values: Any, **changed: Any) -> Any:
            if narrowed is not None and not changed:
                return eqn.primitive.bind(*values, *own, **eqn.params)
            return original.bind(*values, **{**params, **changed})

        site = Site(
            name=name,
            primitive=name_rule(eqn).removeprefix(sites.CALL),
            params=params,
            inputs=tuple(atom.aval for atom in eqn.invars[:used]),
            output=eqn.outvars[0].aval,
            paths=tuple(paths[:used]),
            trips=place.trips,
            bind=bind,
            product=lambda compute, *values, **changed: bilinear(
                original, {**params, **changed}, compute, *values
            ),
            narrowed=narrowed,
            record=lambda lowering, dtype, reason="": self._site(site, place, lowering, dtype, reason),
            observe=lambda value: observed.__setitem__(name, value),
            replace=self._replaced.__setitem__,
            remember=lambda value, fact: self._facts.__setitem__(id(value), (value, fact)),
            recall=lambda value: self._facts.get(id(value), (None, None))[1],
            expand=lambda f, *values, names: self._expanded(f, values, names, paths, place, observed),
        )
        return site

    def _expanded(
        self, f: Callable[..., Any], values: Sequence[Any], names: Sequence[str], paths: list[str | None],
        place: Place, observed: dict[str, Any],
    ) -> Any:  # fmt: skip
        """``f(*values)``, one array; the last of `values` are the parts `names` of the parameter among `paths`."""
        path = next((p for p in reversed(paths[:2]) if p is not None), None)
        inner = [None] * (len(values) - len(names)) + [path and f"{path}/{name}" for name in names]
        closed = jax.make_jaxpr(f)(*[as_shape(x) for x in values])
        outs, seen, _ = self.evaluate(*split_consts(closed), values, inner, place)
        observed.update(seen)
        return outs[0]

    def _name(self, eqn: Any, paths: list[str | None], place: Place) -> str:
        primitive = name_rule(eqn).removeprefix(sites.CALL)
        if place.path not in self._names:
            found = [path for path in paths[:2] if path is not None and primitive in sites.SITES]
            base = found[-1] if found else primitive
            use = self._uses[base] = self._uses.get(base, 0) + 1
            numbered = f"{base}[{use - 1}]" if not found else f"{base}#{use}"
            self._names[place.path] = base if found and use == 1 else numbered
        return self._names[place.path]

    def uses(self) -> dict[str, int]:
        """How often each parameter, or primitive, has been met so far."""
        return dict(self._uses)

    @contextlib.contextmanager
    def counting_from(self, uses: Mapping[str, int]) -> Iterator[None]:
        """Names sites as if no more had been met: the same ones, in another form."""
        now, self._uses = self._uses, dict(uses)
        try:
            yield
        finally:
            self._uses = now

    def _site(self, site: Site, place: Place, lowering: str, dtype: str, reason: str) -> None:
        shapes = tuple(tuple(x.shape) for x in (*site.inputs[:2], site.output))
        self.records[(place.path, "site")] = Record(
            name=site.name, primitive=site.primitive, path=site.path, shapes=shapes, flops=sites.count_flops(site),
            trips=site.trips, before=str(site.inputs[0].dtype), after=dtype, lowering=lowering, reason=reason,
        )  # fmt: skip

    def note(
        self,
        kind: str,
        place: Place,
        name: str,
        reason: str,
        *shapes: tuple[int, ...],
        path: str | None = None,
    ) -> None:
        """Records what could not be done, under the parameter's `path` where there is one."""
        self.records[(place.path, kind, path)] = Record(
            name=path or name, primitive=name, path=path, shapes=shapes, flops=0, trips=place.trips, before="",
            after="", lowering="-", reason=f"{kind}: {reason}", kind=kind,
        )  # fmt: skip

    def _concerns(self, eqn: Any) -> bool:
        """Whether a body of this equation holds a primitive that the rules know."""
        return any(self._jaxpr_concerns(split_consts(sub)[0]) for sub in sub_jaxprs(eqn.params))

    def _jaxpr_concerns(self, jaxpr: Any) -> bool:
        if id(jaxpr) not in self._concerned:
            found = any(name_rule(eqn) in self.t.rules or self._concerns(eqn) for eqn in jaxpr.eqns)
            self._concerned[id(jaxpr)] = (jaxpr, found)  # held, so that the id stays its own
        return self._concerned[id(jaxpr)][1]
