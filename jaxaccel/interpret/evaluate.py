"""The interpreter: a function's program, evaluated with other rules and with other kinds of array.

A transformation is a table of rules by primitive (`Transformation`). `transform` traces a function to a jaxpr
and evaluates it, asking the rules at each equation; loops, branches, nested calls and custom derivatives are
entered. Values may be compressed arrays (`arrays.register`), which reach the rules as they are: what has no
rule for one gets it materialised, and that is recorded.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jcore

from jaxaccel import sites
from jaxaccel.errors import UserError
from jaxaccel.interpret.arrays import ARRAY_RULES, is_compressed
from jaxaccel.interpret.bilinear import bilinear
from jaxaccel.interpret.jaxprs import LAYOUT, meaning, parts, sub_jaxprs
from jaxaccel.sites import Record, Site
from jaxaccel.trees import Where, check_where, parameter_path

PyTree = Any
Rule = Callable[..., Any]
"""``rule(site, *operands)`` returns the result (a list: a loop's), or NotImplemented to leave the equation as it is."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """How what `Site.observe` sends is joined over loops: by an associative reduction with an identity."""

    reduce: Callable[[PyTree], PyTree]
    """Pytree of arrays with a leading axis -> the same without it."""
    identity: Callable[[PyTree], PyTree]
    """Pytree of shapes and dtypes -> what leaves any other unchanged."""


@dataclasses.dataclass(frozen=True)
class Transformation:
    """A set of rules and how to apply them."""

    name: str
    rules: Mapping[str, Rule]
    """By primitive name."""
    argnums: int | Sequence[int] = 0
    """Which arguments hold the parameters that rules know by path."""
    arrays: bool = False
    """Whether compressed arrays among the arguments reach the rules whole."""
    strict: bool = False
    """Whether what could not be done raises."""
    primal_only: bool = False
    """The result is not differentiated: functions with a custom derivative are evaluated inline."""
    observation: Observation | None = None
    where: Mapping[str, Where] = dataclasses.field(default_factory=dict)
    """By the name of an option: the patterns it got, each of which must match a parameter."""


def transform(f: Callable[..., Any], t: Transformation) -> Callable[..., Any]:
    """`f` evaluated by the rules of `t`, with the same signature.

    Arrays among the arguments are traced, all other leaves (numbers, texts, booleans) stay as they are. With
    `t.observation` the result is a pair: that of f, and a dictionary of what was observed, by site name.
    """

    @functools.wraps(f)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        held = is_compressed if t.arrays else None
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=held)
        leaves = [
            jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x for _, x in paths_and_leaves
        ]
        traced = [i for i, leaf in enumerate(leaves) if _is_array(leaf) or (t.arrays and is_compressed(leaf))]
        out_tree: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            now = list(leaves)
            for i, array in zip(traced, arrays, strict=True):
                now[i] = array
            args, kwargs = jax.tree.unflatten(treedef, now)
            out, tree = jax.tree.flatten(f(*args, **kwargs))
            out_tree.append(tree)
            return out

        closed = jax.make_jaxpr(flat)(*[_abstract(leaves[i]) for i in traced])
        names = _parameter_paths(f, t.argnums, len(args), [path for path, _ in paths_and_leaves])
        for option, where in t.where.items():
            check_where(where, [name for name in names if name is not None], option)
        interpreter = Interpreter(t)
        outs, observed, _ = interpreter.evaluate(
            *parts(closed), [leaves[i] for i in traced], [names[i] for i in traced], Place()
        )
        out = jax.tree.unflatten(out_tree[0], [interpreter.dense(x, Place()) for x in outs])
        interpreter.finish()
        return (out, observed) if t.observation else out

    return transformed


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in the program: the numbers of the enclosing equations, and how often they run."""

    path: tuple[int, ...] = ()
    trips: int | None = 1

    def inside(self, number: int, trips: int | None = 1) -> "Place":
        """The place of a body that equation `number` runs `trips` times."""
        both_known = self.trips is not None and trips is not None
        return Place((*self.path, number), self.trips * trips if both_known else None)  # type: ignore[operator]


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
        # What is learnt inside is about values that end with this body.
        facts, self._facts = self._facts, dict(self._facts)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jcore.Literal) else env[atom]

        def path_of(atom: Any) -> str | None:
            return None if isinstance(atom, jcore.Literal) else known.get(atom)

        for number, eqn in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in eqn.invars]
            operand_paths = [path_of(atom) for atom in eqn.invars]
            with eqn.ctx.manager:
                outs, out_paths = self._equation(eqn, operands, operand_paths, place.inside(number), observed)
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

    def dense(self, x: Any, place: Place, why: str = "is a result") -> Any:
        """`x` itself, or the dense array that it stands for, which is recorded."""
        if not is_compressed(x):
            return x
        self.note("materialised", place, type(x).__name__, why, x.shape)
        return x.materialise()

    def finish(self) -> None:
        """Publishes the records.

        Raises:
          UserError: the transformation is strict and something could not be done.
        """
        run = sites.Run(self.t.name, self.records)
        sites.publish(run)
        problems = [f"{r.name}: {r.reason}" for r in run.records if r.kind != "site"]
        if self.t.strict and problems:
            raise UserError(f"{self.t.name}(strict=True): " + "; ".join(problems))

    def _equation(
        self, eqn: Any, operands: list[Any], paths: list[str | None], place: Place, observed: dict[str, Any]
    ) -> tuple[Sequence[Any], Sequence[str | None]]:
        rule, name = self.t.rules.get(meaning(eqn)[0]), eqn.primitive.name
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
        dense = [self.dense(x, place, f"{name} has no rule for it") for x in operands]
        outs = eqn.primitive.bind(*dense, **eqn.primitive.get_bind_params(eqn.params))
        outs = outs if eqn.primitive.multiple_results else [outs]
        follows = name in LAYOUT
        return outs, [paths[0] if follows and paths else None] * len(outs)

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
        primitive, params, narrowed = meaning(eqn)
        original = eqn.primitive if narrowed is None else eqn.params["product"]
        # What a narrowed product takes besides its two operands is its own affair: a random key.
        own = [] if narrowed is None else operands[2:]
        used = len(operands) - len(own)

        def bind(*values: Any, **changed: Any) -> Any:
            if narrowed is not None and not changed:
                return eqn.primitive.bind(*values, *own, **eqn.params)
            return original.bind(*values, **{**params, **changed})

        site = Site(
            name=name,
            primitive=primitive,
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
        # The name reaches the metadata of the HLO, where `explain` finds it again.
        with jax.named_scope(f"{self.t.name}:{name}"):
            out = rule(site, *operands[:used])
            if out is NotImplemented or is_compressed(out) or isinstance(out, list):
                return out
            return out.astype(site.output.dtype) if out.dtype != site.output.dtype else out

    def _expanded(
        self, f: Callable[..., Any], values: Sequence[Any], names: Sequence[str], paths: list[str | None],
        place: Place, observed: dict[str, Any],
    ) -> Any:  # fmt: skip
        """``f(*values)``, one array; the last of `values` are the parts `names` of the parameter among `paths`."""
        path = next((p for p in reversed(paths[:2]) if p is not None), None)
        inner = [None] * (len(values) - len(names)) + [path and f"{path}/{name}" for name in names]
        closed = jax.make_jaxpr(f)(*[_abstract(x) for x in values])
        outs, seen, _ = self.evaluate(*parts(closed), values, inner, place)
        observed.update(seen)
        return outs[0]

    def _name(self, eqn: Any, paths: list[str | None], place: Place) -> str:
        primitive = meaning(eqn)[0]
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
            name=site.name, primitive=site.primitive, path=site.path, shapes=shapes, flops=sites.flops(site),
            trips=site.trips, before=str(site.inputs[0].dtype), after=dtype, lowering=lowering, reason=reason,
        )  # fmt: skip

    def note(self, kind: str, place: Place, name: str, reason: str, *shapes: tuple[int, ...]) -> None:
        """Records what could not be done."""
        self.records[(place.path, kind)] = Record(
            name=name, primitive=name, path=None, shapes=shapes, flops=0, trips=place.trips, before="",
            after="", lowering="-", reason=f"{kind}: {reason}", kind=kind,
        )  # fmt: skip

    def _concerns(self, eqn: Any) -> bool:
        """Whether a body of this equation holds a primitive that the rules know."""
        return any(self._jaxpr_concerns(parts(sub)[0]) for sub in sub_jaxprs(eqn.params))

    def _jaxpr_concerns(self, jaxpr: Any) -> bool:
        if id(jaxpr) not in self._concerned:
            found = any(meaning(eqn)[0] in self.t.rules or self._concerns(eqn) for eqn in jaxpr.eqns)
            self._concerned[id(jaxpr)] = (jaxpr, found)  # held, so that the id stays its own
        return self._concerned[id(jaxpr)][1]


def _abstract(leaf: Any) -> Any:
    return jax.eval_shape(lambda x: x.materialise(), leaf) if is_compressed(leaf) else leaf


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def _parameter_paths(
    f: Callable[..., Any], argnums: int | Sequence[int], positional: int, paths: list[tuple[Any, ...]]
) -> list[str | None]:
    """For each leaf of (args, kwargs): its path within the parameters, or None where it is no parameter."""
    # Negative ones count from the last argument that is given by position, as those of `jax.grad` do.
    given = (argnums,) if isinstance(argnums, int) else argnums
    chosen = {number + positional if number < 0 else number for number in given}
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []

    def one(path: tuple[Any, ...]) -> str | None:
        keyword = path[0].idx == 1
        if keyword:
            name = path[1].key
            number = names.index(name) if name in names else -1
        else:
            number = path[1].idx
            name = names[number] if number < len(names) else f"args[{number}]"
        return (parameter_path(path[2:]) or name) if number in chosen else None

    return [one(path) for path in paths]


BODIES: dict[str, Callable[..., Any]] = {}
"""By primitive: how to enter it. `interpret.bodies` and `interpret.derivatives` fill it."""
