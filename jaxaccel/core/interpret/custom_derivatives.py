"""How the interpreter enters functions that bring their own derivative: `jax.custom_jvp` and `jax.custom_vjp`.

The derivative is a program as well, made when it is asked for. It is interpreted like the function itself and
keeps the shapes and dtypes that it had, so what the one saves still fits the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import linear_util

from jaxaccel.core.interpret.compressed import is_compressed
from jaxaccel.core.interpret.control_flow import Body, Outs, Paths, Values, enters
from jaxaccel.core.interpret.interpreter import Interpreter
from jaxaccel.core.interpret.jaxprs import Place, split_consts


@enters("custom_jvp_call", "custom_vjp_call")
def _custom(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    p = eqn.params
    compressed = any(is_compressed(x) for x in values)
    if i.t.primal_only or compressed:
        if compressed and not i.t.primal_only:
            i.note("primal only", place, eqn.primitive.name, "its own derivative is dropped")
        body = Body(i, p["call_jaxpr"], paths, place)
        outs, seen = body(*values)
        observed.update(seen)
        return outs, body.paths
    derivative = _of_jvp if "jvp_jaxpr_fun" in p else _of_vjp
    new = {**p, **derivative(i, p, paths, place)}
    new["call_jaxpr"] = _rewritten(i, p["call_jaxpr"], (), paths, place.inside(0))
    return eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(new)), [None] * len(eqn.outvars)


def _of_jvp(i: Interpreter, p: Any, paths: Paths, place: Place) -> dict[str, Any]:
    """The rule of a `custom_jvp`. Which of its products are of tangents is not known, so none has a parameter."""

    def made(*args: Any) -> Any:
        jaxpr, consts, *others = p["jvp_jaxpr_fun"].call_wrapped(*args)
        closed = _rewritten(i, jaxpr, consts, (), place.inside(1))
        return (closed.jaxpr, closed.consts, *others)

    return {"jvp_jaxpr_fun": _wrapped(made, p["jvp_jaxpr_fun"])}


def _of_vjp(i: Interpreter, p: Any, paths: Paths, place: Place) -> dict[str, Any]:
    """The two rules of a `custom_vjp`: what stands in for the function, with its sites by the same names, and back."""
    before = i.uses()

    def forward(*args: Any) -> Any:
        jaxpr, consts, *others = p["fwd_jaxpr_thunk"].call_wrapped(*args)
        with i.counting_from(before):
            closed = _rewritten(i, jaxpr, consts, paths[p["num_consts"] :], place.inside(1))
        return (closed.jaxpr, closed.consts, *others)

    def backward(*args: Any) -> Any:
        if not all(map(_is_array, args)):  # cotangents that are known to be zero, on request of the rule
            return p["bwd"].call_wrapped(*args)
        made: list[Any] = []

        def arrays(*args: Any) -> list[Any]:
            # Cotangents, some of which may be JAX's own zeros; from 0.11 on with more beside them.
            made[:] = jax.tree.flatten(p["bwd"].call_wrapped(*args))
            return [x for x in made[0] if _is_array(x)]

        jaxpr, consts = split_consts(jax.make_jaxpr(arrays)(*args))
        new = iter(i.evaluate(jaxpr, consts, args, [None] * len(args), place.inside(2))[0])
        leaves, tree = made
        return jax.tree.unflatten(tree, [next(new) if _is_array(x) else x for x in leaves])

    return {
        "fwd_jaxpr_thunk": _wrapped(forward, p["fwd_jaxpr_thunk"]),
        "bwd": _wrapped(backward, p["bwd"]),
    }


def _wrapped(f: Callable[..., Any], like: Any) -> Any:
    return linear_util.wrap_init(f, debug_info=like.debug_info)


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def _rewritten(
    i: Interpreter, jaxpr: Any, consts: Sequence[Any], paths: Sequence[str | None], place: Place
) -> Any:
    """The interpreted program as a closed jaxpr with the inputs and results of `jaxpr`."""
    # From 0.11 on, JAX hands the constants of a derivative's program over apart from it: as its first inputs.
    inner, own = split_consts(
        jaxpr.with_consts(consts) if consts and hasattr(jaxpr, "with_consts") else jaxpr
    )
    known = paths or [None] * len(inner.invars)
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in inner.invars]
    return jax.make_jaxpr(lambda *values: i.evaluate(inner, consts or own, values, known, place)[0])(*shapes)
