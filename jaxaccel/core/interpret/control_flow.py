"""How the interpreter enters equations that hold programs of their own.

Each entry of `BODIES` builds the same construct around a body that is interpreted. Results and loop carries keep
the shapes and dtypes they had; compressed arrays go in as they are, except where a loop would have to change them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.interpret.compressed import is_compressed
from jaxaccel.core.interpret.interpreter import BODIES, Interpreter
from jaxaccel.core.interpret.jaxprs import Place, scan_parts, split_consts

Values = list[Any]
Paths = list[str | None]
Outs = tuple[Sequence[Any], Sequence[str | None]]


class Body:
    """A sub-jaxpr as a function of its inputs -> (results, observed).

    After a call, `paths` are the parameter paths of the results.
    """

    def __init__(self, interpreter: Interpreter, jaxpr: Any, paths: Paths, place: Place) -> None:
        self.interpreter, self.place, self.paths_in = interpreter, place, paths
        self.jaxpr, self.consts = split_consts(jaxpr)
        self.paths: Paths = []

    def __call__(self, *values: Any) -> tuple[list[Any], dict[str, Any]]:
        """(results, observed)."""
        outs, observed, self.paths = self.interpreter.evaluate(
            self.jaxpr, self.consts, values, self.paths_in, self.place
        )
        return outs, observed

    def dense(self, *values: Any) -> tuple[list[Any], dict[str, Any]]:
        """The same with dense results."""
        outs, observed = self(*values)
        why = "leaves a loop or branch"
        return [
            self.interpreter.dense(x, self.place, why, path) for x, path in zip(outs, self.paths, strict=True)
        ], observed


def enters(*names: str) -> Callable[[Callable[..., Outs]], Callable[..., Outs]]:
    """Adds a function to `BODIES` for primitives of these names."""

    def add(function: Callable[..., Outs]) -> Callable[..., Outs]:
        BODIES.update(dict.fromkeys(names, function))
        return function

    return add


@enters("jit", "pjit", "closed_call", "core_call", "eval_jaxpr")
def _jit(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    p = eqn.params
    body = Body(i, p["jaxpr"] if "jaxpr" in p else p["call_jaxpr"], paths, place)

    def call(*values: Any) -> Any:
        outs, seen = body(*_constrained(values, p.get("in_shardings")))
        return _constrained(outs, p.get("out_shardings")), seen

    call.__name__ = call.__qualname__ = p.get("name", "call")
    options = dict(p.get("compiler_options_kvs", ()))
    outs, seen = jax.jit(call, inline=p.get("inline", True), compiler_options=options or None)(*values)
    observed.update(seen)
    return outs, body.paths


def _constrained(values: Sequence[Any], shardings: Sequence[Any] | None) -> list[Any]:
    """`values` under those of `shardings` that were given."""
    if shardings is None:
        return list(values)
    return [
        jax.lax.with_sharding_constraint(x, s)
        if isinstance(s, jax.sharding.Sharding) and not is_compressed(x)
        else x
        for x, s in zip(values, shardings, strict=True)
    ]


@enters("remat2", "checkpoint", "remat")
def _remat(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    p = eqn.params
    body = Body(i, p["jaxpr"], paths, place)
    if p["differentiated"]:
        # Made by `grad` already: what keeps XLA from undoing it is in the primitive itself.
        closed = jax.make_jaxpr(lambda *values: body.dense(*values)[0])(*values)
        if not closed.consts:
            jaxpr = closed if type(p["jaxpr"]) is type(closed) else closed.jaxpr
            return eqn.primitive.bind(*jax.tree.leaves(values), **{**p, "jaxpr": jaxpr}), body.paths
    outs, seen = jax.checkpoint(body, prevent_cse=p["prevent_cse"], policy=p["policy"])(*values)
    observed.update(seen)
    return outs, body.paths


@enters("scan")
def _scan(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    p = eqn.params
    n_consts, n_carry = scan_parts(p, len(values))
    trips = place.trips and place.trips * p["length"]
    body = Body(i, p["jaxpr"], paths, Place(place.path, trips))
    inner = body.jaxpr
    # A carry that the body hands on untouched is a constant: a compressed parameter may stay what it is.
    kept = {k for k in range(n_consts, n_consts + n_carry) if inner.outvars[k - n_consts] is inner.invars[k]}
    moving = [k for k in range(n_consts, n_consts + n_carry) if k not in kept]
    init = [i.dense(values[k], place, "is carried through a loop", paths[k]) for k in moving]
    xs = [x.rows() if is_compressed(x) else x for x in values[n_consts + n_carry :]]

    def step(carry: Values, row: Values) -> tuple[Values, Any]:
        now = [*values[: n_consts + n_carry], *row]
        for k, x in zip(moving, carry, strict=True):
            now[k] = x
        outs, seen = body.dense(*now) if not kept else _kept_dense(body, now, {k - n_consts for k in kept})
        return [outs[k - n_consts] for k in moving], (outs[n_carry:], seen)

    more = {k: p[k] for k in ("reverse", "length", "unroll")}
    carry, (ys, seen) = jax.lax.scan(step, init, xs, **more)
    outs = [values[k] if k in kept else None for k in range(n_consts, n_consts + n_carry)]
    for k, x in zip(moving, carry, strict=True):
        outs[k - n_consts] = x
    observed.update({name: i.t.observation.reduce(value) for name, value in seen.items()})  # type: ignore[union-attr]
    kept_paths = [paths[k] if k in kept else None for k in range(n_consts, n_consts + n_carry)]
    return [*outs, *ys], kept_paths + [None] * len(ys)


def _kept_dense(body: Body, values: Values, kept: set[int]) -> tuple[list[Any], dict[str, Any]]:
    outs, seen = body(*values)
    dense = body.interpreter.dense
    return [
        x if k in kept else dense(x, body.place, "leaves a loop or branch", body.paths[k])
        for k, x in enumerate(outs)
    ], seen


@enters("while")
def _while(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    p = eqn.params
    n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
    test_consts, body_consts, init = (
        values[:n_test],
        values[n_test : n_test + n_body],
        values[n_test + n_body :],
    )
    test_paths, body_paths = paths[:n_test], paths[n_test : n_test + n_body]
    none: Paths = [None] * len(init)
    unknown = place.path
    test = Body(i, p["cond_jaxpr"], test_paths + none, Place((*unknown, 0), None))
    body = Body(i, p["body_jaxpr"], body_paths + none, Place((*unknown, 1), None))
    carried = zip(init, paths[n_test + n_body :], strict=True)
    init = [i.dense(x, place, "is carried through a loop", path) for x, path in carried]
    start: dict[str, Any] = {}
    if i.t.observation:
        # The test first, as when the loop is traced: sites are named in the order in which they are met.
        shapes = jax.eval_shape(lambda carry: test.dense(*test_consts, *carry)[1], init)
        shapes |= jax.eval_shape(lambda carry: body.dense(*body_consts, *carry)[1], init)
        start = {name: i.t.observation.identity(shape) for name, shape in shapes.items()}

    # A loop under `vmap` has a test for each example, and those that are done keep what they have.
    batched = test.jaxpr.outvars[0].aval.ndim > 0

    def going(carry: Values) -> Any:
        return test.dense(*test_consts, *carry)[0][0]

    def more(state: tuple[Values, dict]) -> Any:
        return jnp.any(going(state[0])) if batched else going(state[0])

    def step(state: tuple[Values, dict]) -> tuple[Values, dict]:
        carry, before = state
        tested = test.dense(*test_consts, *carry)[1] if start else {}
        outs, seen = body.dense(*body_consts, *carry)
        if batched:
            still = going(carry)
            outs = [_where(still, new, old) for new, old in zip(outs, carry, strict=True)]
        return outs, _joined(i, [before, {**start, **tested, **seen}])

    outs, seen = jax.lax.while_loop(more, step, (init, start))
    last = test.dense(*test_consts, *outs)[1] if start else {}
    observed.update(_joined(i, [seen, {**start, **last}]))
    return outs, none


def _where(chosen: Any, x: Any, y: Any) -> Any:
    """`x` where `chosen`, which has its leading axes, and else `y`."""
    return jnp.where(jnp.expand_dims(chosen, range(chosen.ndim, x.ndim)), x, y)


@enters("cond")
def _cond(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    index, *operands = values
    bodies = [Body(i, branch, paths[1:], place.inside(k)) for k, branch in enumerate(eqn.params["branches"])]
    every: dict[str, Any] = {}
    if i.t.observation:
        for body in bodies:
            shapes = jax.eval_shape(lambda *x, body=body: body.dense(*x)[1], *operands)
            every |= {name: i.t.observation.identity(shape) for name, shape in shapes.items()}

    def branch(body: Body, *operands: Any) -> tuple[list[Any], dict[str, Any]]:
        outs, seen = body.dense(*operands)
        return outs, {**every, **seen}

    outs, seen = jax.lax.switch(index, [partial(branch, body) for body in bodies], *operands)
    observed.update(seen)
    return outs, [None] * len(outs)


def _joined(i: Interpreter, seen: list[dict[str, Any]]) -> dict[str, Any]:
    if i.t.observation is None:
        return {}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
    return {name: i.t.observation.reduce(value) for name, value in stacked.items()}
