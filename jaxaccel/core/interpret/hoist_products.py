"""Scans with their matrix products taken out: into one product before the loop, or one after it.

A recurrent network multiplies each input of its sequence by the same weights, and the gradient of these weights is a
sum over the sequence. As written, both are a small product at each step; the first can be one large product of the
whole sequence before the loop, and the second one after it (Appleyard et al. 2016, arXiv:1604.01946).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.interpret.jaxprs import read, read_meaning
from jaxaccel.core.interpret.merge_products import Merged, merge, merge_key, multiply_merged
from jaxaccel.core.interpret.scan_step import Step, Sum, Worth, evaluate_equations


@dataclasses.dataclass(frozen=True)
class Hoisted:
    """The results of a scan, how many products now are before and after it, and how many of those left are merged."""

    outs: list[Any]
    before: int
    after: int
    merged: int


def hoist(
    params: Mapping[str, Any], values: Sequence[Any], worth: Worth, inside: Callable[[Any], Any]
) -> Hoisted | None:
    """A scan on these operands with all products outside that can be and are `worth` it; None where there are none.

    `inside` is a transformation of functions, for loops within the loop.
    """
    step = Step(params, len(values), inside)
    before, sums = step.before(worth), step.after(worth)
    gone = {*before, *(i for one in sums for i in one.members)}
    left = [(i, eqn) for i, eqn in enumerate(step.jaxpr.eqns) if i not in gone]
    merged = step.merged(left, worth)
    return _run(step, values, before, sums, left, merged) if before or sums or merged else None


def _run(
    step: Step,
    values: Sequence[Any],
    before: Sequence[int],
    sums: Sequence[Sum],
    left: Sequence[tuple[int, Any]],
    merged: Sequence[Merged],
) -> Hoisted:
    """The loop with the equations that are `left`, some of them merged, and the products before and after it."""
    eqns, n, m = step.jaxpr.eqns, len(step.consts), len(step.carry)
    constants = dict(zip(step.jaxpr.constvars, step.closed, strict=True))
    constants |= dict(zip(step.consts, values[:n], strict=True))
    init, xs = values[n : n + m], values[n + m :]
    early = [eqns[i].outvars[0] for i in before]
    needed = [(i, eqns[i]) for i in step.ancestors(v for i in before for v in eqns[i].outvars)]
    joined = merge(needed, step.is_constant, step.uses)
    matrices = [one.matrix(_evaluated(step, one, constants)) for one in (*joined, *merged)]

    def products(*rows: Any) -> list[Any]:
        env = constants | dict(zip(step.xs, rows, strict=True))
        evaluate_equations(needed, env, zip(joined, matrices, strict=False))
        return [env[v] for v in early]

    ready = jax.vmap(products)(*xs) if early else []
    kept = [k for k in range(m) if k not in {one.carry for one in sums}]
    factors = dict.fromkeys(v for one in sums for v in eqns[one.product].invars if v not in set(step.xs))

    def advance(carry: list[Any], rows: list[Any]) -> tuple[list[Any], list[Any]]:
        env = constants | dict(zip([step.carry[k] for k in kept], carry, strict=True))
        env |= dict(zip([*step.xs, *early], rows, strict=True))
        evaluate_equations(left, env, zip(merged, matrices[len(joined) :], strict=True))
        outs = step.jaxpr.outvars
        return [read(outs[k], env) for k in kept], [read(v, env) for v in (*outs[m:], *factors)]

    options = {name: step.params[name] for name in ("reverse", "length", "unroll")}
    ends, stacked = jax.lax.scan(advance, [init[k] for k in kept], [*xs, *ready], **options)
    ys, rows = stacked[: len(stacked) - len(factors)], stacked[len(stacked) - len(factors) :]
    sequences = dict(zip(step.xs, xs, strict=True)) | dict(zip(factors, rows, strict=True))
    outs: list[Any] = [None] * m
    for k, value in zip(kept, ends, strict=True):
        outs[k] = value
    for k, total in _totals(step, sums, sequences):
        outs[k] = init[k] + total
    return Hoisted([*outs, *ys], len(before), len(sums), sum(len(one.products) for one in merged))


def _evaluated(step: Step, one: Merged, constants: Mapping[Any, Any]) -> dict[Any, Any]:
    """`constants` with what the matrices of `one` are made of."""
    env = dict(constants)
    matrices = (eqn.invars[one.side] for eqn in one.products)
    evaluate_equations([(i, step.jaxpr.eqns[i]) for i in step.ancestors(matrices)], env)
    return env


def _totals(step: Step, sums: Sequence[Sum], sequences: Mapping[Any, Any]) -> Iterator[tuple[int, Any]]:
    """(carry, sum over all steps) of each: its product, summed over the axis of steps as well.

    Those with one operand in common are one product.
    """
    eqns, groups = step.jaxpr.eqns, {}
    for one in sums:
        eqn = eqns[one.product]
        lhs, rhs = eqn.invars
        contracting, batch = read_meaning(eqn)[1]["dimension_numbers"]
        plain = rhs.aval.ndim == 2 and len(contracting[1]) == 1 and not batch[1]
        alone = None if plain else one.product
        groups.setdefault((lhs, merge_key(eqn), alone), []).append(one)
    for (lhs, _, _), group in groups.items():
        first = eqns[group[0].product]
        contracting, batch = read_meaning(first)[1]["dimension_numbers"]
        summed, kept = ([tuple(a + 1 for a in axes) for axes in pair] for pair in (contracting, batch))
        numbers = (((0, *summed[0]), (0, *summed[1])), (kept[0], kept[1]))
        others = [sequences[eqns[one.product].invars[1]] for one in group]
        axis = 2 if summed[1] == (1,) else 1
        joined = others[0] if len(group) == 1 else jnp.concatenate(others, axis)
        out = multiply_merged(first, sequences[lhs], joined, numbers)
        start = 0
        for one, other in zip(group, others, strict=True):
            var = eqns[one.product].outvars[0]
            stop = start + other.shape[axis]
            env = {var: out if len(group) == 1 else jax.lax.slice_in_dim(out, start, stop, axis=out.ndim - 1)}
            start = stop
            evaluate_equations([(i, eqns[i]) for i in one.layout], env)
            yield one.carry, env[eqns[one.layout[-1]].outvars[0] if one.layout else var]
