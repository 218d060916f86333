"""A program in two: what depends on the parameters alone, and the rest."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jcore
from jax.interpreters import partial_eval

from jaxaccel.interpret.evaluate import LAYOUT, parts


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


def split(closed: Any, paths: Sequence[str]) -> Split:
    """Splits a closed jaxpr, whose first inputs are the parameters with these `paths`.

    An equation belongs to the first half when all that it needs does and it has no effects. Loops are not taken apart.
    """
    jaxpr, consts = parts(closed)
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    n = len(paths)
    origin: dict[Any, str] = dict(zip(jaxpr.invars[:n], paths, strict=True))
    origin |= {var: f"constant/{k}" for k, var in enumerate(jaxpr.constvars)}
    first, second = [], []
    for eqn in jaxpr.eqns:
        inputs = [x for x in eqn.invars if not isinstance(x, jcore.Literal)]
        if eqn.effects or not all(x in origin for x in inputs):
            second.append(eqn)
            continue
        first.append(eqn)
        origin |= {out: _descent(eqn, inputs, origin) for out in eqn.outvars}
    wanted = [x for eqn in second for x in eqn.invars] + list(jaxpr.outvars)
    residuals = list(dict.fromkeys(x for x in wanted if not isinstance(x, jcore.Literal) and x in origin))

    def known(params: Sequence[Any]) -> list[Any]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(
            zip(jaxpr.invars[:n], params, strict=True)
        )
        _run(first, env)
        return [env[var] for var in residuals]

    def rest(values: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        env = dict(zip(residuals, values, strict=True)) | dict(zip(jaxpr.invars[n:], inputs, strict=True))
        _run(second, env)
        return [_read(env, x) for x in jaxpr.outvars]

    shapes = tuple(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in residuals)
    return Split(known, rest, _unique([origin[var] for var in residuals]), shapes)


def _descent(eqn: Any, inputs: Sequence[Any], origin: dict[Any, str]) -> str:
    """The parameter that a result is named after: the one of its shape, else the largest of those it came from."""
    if eqn.primitive.name in LAYOUT:
        return origin[inputs[0]] if inputs else "constant"
    shape = eqn.outvars[0].aval.shape
    ranked = sorted(inputs, key=lambda x: (x.aval.shape == shape, x.aval.size, "constant" not in origin[x]))
    return origin[ranked[-1]] if ranked else "constant"


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
