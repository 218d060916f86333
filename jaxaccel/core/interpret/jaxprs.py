"""Reading jaxprs, which JAX 0.10 and 0.11 keep differently."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jcore
from jax.interpreters import partial_eval

from jaxaccel.core.interpret.bilinear import bilinear_p
from jaxaccel.core.sites import CALL

LAYOUT = frozenset({
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "dynamic_slice", "rev", "copy"),
    *("copy_p", "convert_element_type", "reduce_precision", "sharding_constraint", "optimization_barrier"),
    *("pvary", "pcast", "pbroadcast"),
})  # fmt: skip
"""Primitives after which a parameter is still that parameter, in another layout or dtype."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in the program: the numbers of the enclosing equations, and how often they run."""

    path: tuple[int, ...] = ()
    trips: int | None = 1

    def inside(self, number: int, trips: int | None = 1) -> "Place":
        """The place of a body that equation `number` runs `trips` times."""
        both_known = self.trips is not None and trips is not None
        return Place((*self.path, number), self.trips * trips if both_known else None)  # type: ignore[operator]


def read_meaning(eqn: Any) -> tuple[str, dict[str, Any], str | None]:
    """(primitive, params, what was made of it): a product that is narrowed already still means a product."""
    if eqn.primitive is bilinear_p:
        return eqn.params["product"].name, dict(eqn.params["params"]), eqn.params["compute"].name
    return eqn.primitive.name, eqn.params, None


def name_rule(eqn: Any) -> str:
    """What a rule for this equation is called: the primitive that it means, or ``call:NAME`` of a jitted function."""
    name = read_meaning(eqn)[0]
    return f"{CALL}{eqn.params['name']}" if name in ("jit", "pjit") and "name" in eqn.params else name


def split_consts(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, whether JAX keeps them in one object (0.11) or, when closed, in two (0.10)."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())


def find_used(f: Callable[..., Any], *args: Any) -> Any:
    """Tells of each array among the arguments whether the results of `f` depend on it: ``args`` with booleans."""
    jaxpr, _ = split_consts(jax.make_jaxpr(f)(*args))
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return jax.tree.unflatten(jax.tree.structure(args), used)


def sub_jaxprs(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (jcore.Jaxpr, jcore.ClosedJaxpr)):
                found.append(item)
            elif isinstance(getattr(item, "params", None), Mapping):  # a primitive made of others (0.11)
                found += sub_jaxprs(item.params)
    return found


def scan_parts(params: Mapping[str, Any], inputs: int) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried (JAX 0.11 keeps a tree of them)."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = (list(part) for part in params["ft_in"].update(range(inputs)).unpack())
    return len(consts), len(carry)


def has_primitive(jaxpr: Any, name: str) -> bool:
    """Whether a primitive of this name is in a jaxpr or in one within it."""
    return any(
        eqn.primitive.name == name
        or any(has_primitive(split_consts(sub)[0], name) for sub in sub_jaxprs(eqn.params))
        for eqn in jaxpr.eqns
    )


def first_uses(f: Callable[..., Any], params: Any, *args: Any) -> list[int]:
    """For each leaf of `params`, when ``f(params, *args)`` first uses it: a count of equations from its start.

    Args:
      f: any function of arrays.
      params: shapes or arrays.
      args: the same.
    """
    jaxpr, _ = split_consts(jax.make_jaxpr(f)(params, *args))
    count = len(jax.tree.leaves(params))
    met: dict[int, int] = {}
    _meet(jaxpr, {var: i for i, var in enumerate(jaxpr.invars[:count])}, met)
    return [met.get(i, len(met) + count) for i in range(count)]


def _meet(jaxpr: Any, of_interest: Mapping[Any, int], met: dict[int, int]) -> None:
    for eqn in jaxpr.eqns:
        found = {
            k: of_interest[x]
            for k, x in enumerate(eqn.invars)
            if not isinstance(x, jcore.Literal) and x in of_interest
        }
        inner = [split_consts(sub)[0] for sub in sub_jaxprs(eqn.params)] if found else []
        for sub in inner:
            # Most bodies take their operands in order; a branch's come behind its index.
            late = len(eqn.invars) - len(sub.invars)
            _meet(
                sub,
                {sub.invars[k - late]: i for k, i in found.items() if 0 <= k - late < len(sub.invars)},
                met,
            )
        for i in found.values():
            met.setdefault(i, len(met))


def read(atom: Any, env: Mapping[Any, Any]) -> Any:
    """The value of a variable, or of a literal."""
    return atom.val if isinstance(atom, jcore.Literal) else env[atom]


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a number that stands in the program itself."""
    return isinstance(atom, jcore.Literal)
