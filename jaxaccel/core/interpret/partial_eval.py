"""A program in two: what depends on the parameters alone, and the rest."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jcore
from jax.interpreters import partial_eval

from jaxaccel.core.interpret.jaxprs import LAYOUT, split_consts


@dataclasses.dataclass(frozen=True)
class Split:
    """The two halves of a program, and what goes from one to the other."""

    known: Callable[..., list[Any]]
    """Parameters -> residuals."""
    rest: Callable[..., list[Any]]
    """(residuals, inputs) -> results."""
    names: tuple[str, ...]
    """Of the residuals: the path of the parameter that each descends from, made unique."""
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    """Of the residuals."""


def split_program(closed: Any, paths: Sequence[str]) -> Split:
    """Splits a closed jaxpr, whose first inputs are the parameters with these `paths`.

    An equation belongs to the first half when all that it needs does and it has no effects. Loops are not taken apart.
    What only repeats parameters (a bias broadcast over the batch) is done again in the second half: it costs less than
    reading it, and the parameters stay those of any batch size. Constants belong to both.
    """
    jaxpr, consts = split_consts(closed)
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    n = len(paths)
    origin: dict[Any, str] = dict(zip(jaxpr.invars[:n], paths, strict=True))
    grown: set[Any] = set()
    free: set[Any] = set(jaxpr.constvars)
    first, second = [], []
    for eqn in jaxpr.eqns:
        inputs = [x for x in eqn.invars if not isinstance(x, jcore.Literal)]
        if not eqn.effects and all(x in free for x in inputs):
            free.update(eqn.outvars)
            first.append(eqn)
            second.append(eqn)
        elif not eqn.effects and all(x in origin or x in free for x in inputs):
            origin |= {out: _descent(eqn, inputs, origin) for out in eqn.outvars}
            first.append(eqn)
            sources = [x for x in inputs if x in origin]
            largest = max((_size(x) for x in sources if not _is_open(x)), default=0)
            if grown.issuperset(sources) or any(_is_open(x) or _size(x) > largest for x in eqn.outvars):
                grown.update(eqn.outvars)
                second.append(eqn)
        else:
            second.append(eqn)
    second, wanted = _needed(second, jaxpr.outvars)
    # A table that is looked up, and transposed for a product: kept once.
    held = {x for x in origin if x in wanted and x not in grown}
    again = [eqn for eqn in first if _repeats(eqn, held)]
    grown.update(out for eqn in again for out in eqn.outvars)
    second = again + second
    # In the order in which they are made, which does not depend on the batch size; that of their use may.
    residuals = [x for x in origin if x in wanted and x not in grown]

    def known(params: Sequence[Any]) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(
            zip(jaxpr.invars[:n], params, strict=True)
        )
        _run(first, env)
        return [env[var] for var in residuals]

    def rest(values: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(residuals, values, strict=True))
        env |= dict(zip(jaxpr.invars[n:], inputs, strict=True))
        _run(second, env)
        return [_read(env, x) for x in jaxpr.outvars]

    shapes = tuple(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in residuals)
    return Split(known, rest, _unique([origin[var] for var in residuals]), shapes)


def _repeats(eqn: Any, held: set[Any]) -> bool:
    """Whether an equation only makes another layout of a parameter, and both are needed."""
    moves = eqn.primitive.name in ("transpose", "reshape", "squeeze", "expand_dims")
    return moves and all(not isinstance(x, jcore.Literal) and x in held for x in [*eqn.invars, *eqn.outvars])


def _needed(eqns: Sequence[Any], outs: Sequence[Any]) -> tuple[list[Any], set[Any]]:
    """Those of `eqns` that `outs` need, and all that is read."""
    wanted = {x for x in outs if not isinstance(x, jcore.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or wanted.intersection(eqn.outvars):
            kept.append(eqn)
            wanted.update(x for x in eqn.invars if not isinstance(x, jcore.Literal))
    kept.reverse()
    return kept, wanted


def _descent(eqn: Any, inputs: Sequence[Any], origin: dict[Any, str]) -> str:
    """The parameter that a result is named after: the one of its shape, else the largest of those it came from."""
    inputs = [x for x in inputs if x in origin]
    if eqn.primitive.name in LAYOUT:
        return origin[inputs[0]]
    shape = eqn.outvars[0].aval.shape
    return origin[max(reversed(inputs), key=lambda x: (x.aval.shape == shape, _size(x)))]


def _is_open(x: Any) -> bool:
    """Whether a size of it is left open, as those of a batch are where a program is exported."""
    return not all(isinstance(n, int) for n in x.aval.shape)


def _size(x: Any) -> int:
    return math.prod(x.aval.shape)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(unique)


def _read(env: dict[Any, Any], x: Any) -> Any:
    return x.val if isinstance(x, jcore.Literal) else env[x]


def _run(eqns: Sequence[Any], env: dict[Any, Any]) -> None:
    for eqn in eqns:
        values = [_read(env, x) for x in eqn.invars]
        with eqn.ctx.manager:
            outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        env.update(zip(eqn.outvars, outs if eqn.primitive.multiple_results else [outs], strict=True))
