"""Chains: a product and the elementwise operations behind it, which one kernel can compute together.

Between the operations of a chain lie values that nothing else reads, so they need not exist.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jcore

from jaxaccel.core.interpret.jaxprs import read_meaning, split_consts, sub_jaxprs
from jaxaccel.core.interpret.scan_step import evaluate_equations
from jaxaccel.core.sites import BILINEAR

_CALLS = ("custom_jvp_call", "custom_vjp_call", "closed_call", "jit", "pjit")


@dataclasses.dataclass(frozen=True)
class Operand:
    """What is not computed by the chain: a variable or a number of the program, and how it was broadcast."""

    atom: Any
    axes: tuple[int, ...]
    """The axis of the chain's values for each axis of the operand."""
    integers: Any = None
    """Where it is integers times one number: their variable."""
    step: Any = None
    """And that number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its own shape."""
        return tuple(self.atom.aval.shape)

    @property
    def number(self) -> float | None:
        """Its value, where it is a number that stands in the program itself."""
        is_number = isinstance(self.atom, jcore.Literal) and math.prod(self.shape) == 1
        return float(self.atom.val) if is_number else None


_UNKNOWN = Operand(None, (-1,))
"""An operand of which nothing is known."""


@dataclasses.dataclass(frozen=True)
class Link:
    """One elementwise operation of a chain."""

    number: int
    """Of its equation, which is a call where it has several."""
    name: str
    """Of the primitive."""
    params: Mapping[str, Any]
    others: tuple[Operand, ...]
    """Its operands but for the chain's own value."""
    position: int
    """Which of its operands the chain's own value is."""
    output: Any
    """Shape and dtype of its result."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of the program at which a chain may begin."""

    number: int
    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Any, ...]
    output: Any
    narrowed: str | None
    """What an inner transformation made of it, or None."""


@dataclasses.dataclass(frozen=True)
class Fused:
    """A chain that is computed as one."""

    product: int
    members: frozenset[int]
    """Numbers of all its equations."""
    last: int
    operands: tuple[Any, ...]
    """Variables and numbers of the program: the product's two, then those of its links."""
    rule: Callable[..., Any]
    """``rule(site, reference, *operands)``: the result; `site` is the product, and ``reference(*operands)`` computes
    the same one by one."""


class Program:
    """The equations of one jaxpr, and who reads whose result."""

    def __init__(self, jaxpr: Any) -> None:
        self.jaxpr = jaxpr
        self.readers: dict[Any, list[int]] = {}
        self.made_by: dict[Any, int] = {}
        for number, eqn in enumerate(jaxpr.eqns):
            self.made_by.update(dict.fromkeys(eqn.outvars, number))
            for atom in eqn.invars:
                if not isinstance(atom, jcore.Literal):
                    self.readers.setdefault(atom, []).append(number)
        self.results = {atom for atom in jaxpr.outvars if not isinstance(atom, jcore.Literal)}

    def products(self) -> Iterator[Product]:
        """Yields matrix products and convolutions, the last one first: of two that are summed it has the sum."""
        for number, eqn in reversed(list(enumerate(self.jaxpr.eqns))):
            primitive, params, narrowed = read_meaning(eqn)
            if primitive in BILINEAR:
                inputs = tuple(atom.aval for atom in eqn.invars[:2])
                yield Product(number, primitive, params, inputs, eqn.outvars[0].aval, narrowed)

    def follow(self, product: Product, taken: set[int]) -> list[Link]:
        """Follows the value of a product through elementwise operations, as long as one alone reads it.

        `taken` are numbers of equations that belong to other chains.
        """
        links: list[Link] = []
        value = self.jaxpr.eqns[product.number].outvars[0]
        while value not in self.results and len(self.readers.get(value, [])) == 1:
            number = self.readers[value][0]
            found = None if number in taken else self._read_links(number, value)
            if found is None:
                break
            links += found
            value = self.jaxpr.eqns[number].outvars[0]
        return links

    def operands_of(self, number: int) -> tuple[Any, ...]:
        """The variables and numbers that an equation reads."""
        return tuple(self.jaxpr.eqns[number].invars)

    def evaluate(self, members: frozenset[int], operands: Sequence[Any]) -> Callable[..., Any]:
        """Makes the function of `operands` that computes these equations one by one; the result is the last one's."""
        needed, given = set(members), {*_variables(operands)}
        open_ = list(members)
        while open_:  # between the operands and the chain lie broadcasts and casts
            read = _variables(self.jaxpr.eqns[open_.pop()].invars)
            made = {self.made_by[atom] for atom in read if atom not in given and atom in self.made_by}
            open_ += made - needed
            needed |= made
        eqns = [(number, self.jaxpr.eqns[number]) for number in sorted(needed)]

        def reference(*values: Any) -> Any:
            pairs = zip(operands, values, strict=True)
            env = {atom: x for atom, x in pairs if not isinstance(atom, jcore.Literal)}
            evaluate_equations(eqns, env)
            return env[self.jaxpr.eqns[max(members)].outvars[0]]

        return reference

    def _read_links(self, number: int, value: Any) -> list[Link] | None:
        """What an equation does with `value`, operation by operation; None where that is not elementwise in it."""
        eqn = self.jaxpr.eqns[number]
        operands = [None if atom is value else self._find_source(atom) for atom in eqn.invars]
        return _read_equation(eqn, operands, number)

    def _find_source(self, atom: Any) -> Operand:
        """What was broadcast to `atom`, or itself."""
        axes = tuple(range(atom.aval.ndim))
        if isinstance(atom, jcore.Literal) or atom not in self.made_by:
            return Operand(atom, axes)
        eqn = self.jaxpr.eqns[self.made_by[atom]]
        if eqn.primitive.name == "mul":
            return Operand(atom, axes, *self._find_integers(eqn))
        if eqn.primitive.name != "broadcast_in_dim" or len(eqn.invars) != 1:
            return Operand(atom, axes)
        return Operand(eqn.invars[0], tuple(eqn.params["broadcast_dimensions"]))

    def _find_integers(self, eqn: Any) -> tuple[Any, Any]:
        """The int8 values and the number that were multiplied; None and None where it was something else."""
        for values, step in (eqn.invars, eqn.invars[::-1]):
            made = None if isinstance(values, jcore.Literal) else self.made_by.get(values)
            source = None if made is None else self.jaxpr.eqns[made]
            if source is None or source.primitive.name != "convert_element_type":
                continue
            step = self._find_source(step).atom  # a number, broadcast or not
            if str(source.invars[0].aval.dtype) == "int8" and math.prod(step.aval.shape) == 1:
                return source.invars[0], step
        return None, None


def _variables(atoms: Sequence[Any]) -> Iterator[Any]:
    return (atom for atom in atoms if not isinstance(atom, jcore.Literal))


def _read_equation(eqn: Any, operands: Sequence[Operand | None], number: int) -> list[Link] | None:
    """The links of one equation; a call is read through. None stands for the chain's own value among `operands`."""
    if len(eqn.outvars) != 1 or eqn.effects or operands.count(None) != 1:
        return None
    if eqn.primitive.name in _CALLS:
        return _read_body(eqn, operands, number)
    position = operands.index(None)
    others = tuple(x for x in operands if x is not None)
    shape = eqn.outvars[0].aval.shape
    if eqn.invars[position].aval.shape != shape:
        return None
    return [Link(number, eqn.primitive.name, eqn.params, others, position, eqn.outvars[0].aval)]


def _read_body(eqn: Any, operands: Sequence[Operand | None], number: int) -> list[Link] | None:
    """The links of a called function, all of whose operations have to be in the chain."""
    bodies = sub_jaxprs(eqn.params)
    jaxpr, consts = split_consts(bodies[0]) if bodies else (None, ())
    if jaxpr is None or consts or len(jaxpr.invars) != len(operands) or len(jaxpr.outvars) != 1:
        return None
    env = dict(zip(jaxpr.invars, operands, strict=True))
    links: list[Link] = []
    for inner in jaxpr.eqns:
        given = [
            Operand(atom, ()) if isinstance(atom, jcore.Literal) else env.get(atom, _UNKNOWN)
            for atom in inner.invars
        ]
        if _UNKNOWN in given:
            return None
        if None in given:
            found = _read_equation(inner, given, number)
            if found is None:
                return None
            links += found
            env[inner.outvars[0]] = None
        elif inner.primitive.name == "convert_element_type":  # of a number, which stays that number
            source = given[0]
            is_number = source is not None and source.number is not None
            env[inner.outvars[0]] = source if is_number else _UNKNOWN
    out = jaxpr.outvars[0]
    if isinstance(out, jcore.Literal) or env.get(out, _UNKNOWN) is not None:
        return None
    read = [atom for inner in jaxpr.eqns for atom in inner.invars if not isinstance(atom, jcore.Literal)]
    values = [v for v, x in env.items() if x is None and v is not out]
    if any(read.count(v) != 1 for v in values):
        return None
    return links or [Link(number, "copy", {}, (), operands.index(None), out.aval)]


def with_derivative_of(reference: Callable[..., Any], f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, which computes what `reference` does, with its derivative."""
    fast = jax.custom_jvp(f)

    @fast.defjvp
    def derive(primals: Any, tangents: Any) -> tuple[Any, Any]:
        return jax.jvp(reference, primals, tangents)

    return fast
