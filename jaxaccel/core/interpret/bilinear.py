"""A matrix product or convolution computed in our way, with the derivatives of the original one.

``bilinear`` stands in a program for `dot_general` or `conv_general_dilated` and says how to compute it (in
bfloat16, say). Its derivatives, forward and backward, and its batching are those that JAX has for the original
primitive, with the products in them computed the same way. A cast before and after the original primitive would
not do: its transpose multiplies a float32 cotangent by a bfloat16 operand, which every backend computes in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend import core as jcore
from jax.interpreters import ad, batching, mlir, partial_eval

from jaxaccel.core.sites import BILINEAR, GROUPED, OPERANDS


class Compute(Protocol):
    """How to compute a product. Hashable, for it becomes a parameter of the program.

    One with an attribute ``elementwise`` that is true rounds each element by itself: parts of a larger product are then
    computed as they would be alone.
    """

    @property
    def name(self) -> str:
        """What `explain` calls it."""
        ...

    def __call__(self, primitive: Any, params: Mapping[str, Any], lhs: Any, rhs: Any, *extra: Any) -> Any:
        """The product of `lhs` and `rhs`, in the dtype that ``primitive.bind(lhs, rhs, **params)`` has."""
        ...

    def transposed(self, cotangent: int) -> "Compute":
        """For a product of the backward pass, whose operand number `cotangent` is made of the cotangent."""
        ...


bilinear_p = jcore.Primitive("bilinear")


def bilinear(
    primitive: Any, params: Mapping[str, Any], compute: Compute, lhs: Any, rhs: Any, *extra: Any
) -> Any:
    """``primitive.bind(lhs, rhs, **params)`` as `compute` does it.

    `extra` has no derivative: further operands of the primitive (sizes of groups), then what `compute` wants (keys).
    """
    items = tuple(sorted(params.items()))
    return bilinear_p.bind(lhs, rhs, *extra, product=primitive, params=items, compute=compute)


def _compute(lhs: Any, rhs: Any, *extra: Any, product: Any, params: tuple[Any, ...], compute: Compute) -> Any:
    return compute(product, dict(params), lhs, rhs, *extra)


_run = partial(jax.jit, static_argnames=("product", "params", "compute"))(_compute)
bilinear_p.def_impl(_run)
mlir.register_lowering(bilinear_p, mlir.lower_fun(_compute, multiple_results=False))


def _abstract(
    lhs: Any, rhs: Any, *extra: Any, product: Any, params: tuple[Any, ...], compute: Compute
) -> Any:
    return product.abstract_eval(lhs, rhs, *_split(product, extra)[0], **dict(params))


def _split(product: Any, extra: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """(further operands of the product, what `compute` wants)."""
    count = OPERANDS.get(product.name, 2) - 2
    return extra[:count], extra[count:]


bilinear_p.def_effectful_abstract_eval(_abstract)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **kwargs: Any) -> tuple[Any, Any]:
    lhs, rhs, *extra = primals
    d_lhs, d_rhs = tangents[:2]
    out = bilinear_p.bind(lhs, rhs, *extra, **kwargs)
    terms = []
    if type(d_lhs) is not ad.Zero:
        terms.append(bilinear_p.bind(d_lhs, rhs, *extra, **kwargs))
    if type(d_rhs) is not ad.Zero:
        terms.append(bilinear_p.bind(lhs, d_rhs, *extra, **kwargs))
    return out, sum(terms[1:], terms[0]) if terms else ad.Zero(jax.typeof(out).to_tangent_aval())


ad.primitive_jvps[bilinear_p] = _jvp


def _transpose(
    ct: Any, lhs: Any, rhs: Any, *extra: Any, product: Any, params: tuple[Any, ...], compute: Compute
) -> list[Any]:
    rest: list[Any] = [None] * len(extra)
    operand = 0 if ad.is_undefined_primal(lhs) else 1
    wanted, other = (lhs, rhs) if operand == 0 else (rhs, lhs)
    more, own = _split(product, extra)
    if type(ct) is ad.Zero:
        out = ad.Zero(wanted.aval)
    else:

        def linear(x: Any) -> Any:
            return product.bind(*((x, other) if operand == 0 else (other, x)), *more, **dict(params))

        def transposed(ct: Any) -> Any:
            return jax.linear_transpose(linear, wanted.aval)(ct)[0]

        out = _with(lambda made: compute.transposed(0 if made[0] else 1), own, transposed, ct)
    return [out, None, *rest] if operand == 0 else [None, out, *rest]


ad.primitive_transposes[bilinear_p] = _transpose


def _batch(
    args: Sequence[Any], dims: Sequence[Any], *, product: Any, params: tuple[Any, ...], compute: Compute
) -> tuple[Any, int]:
    if any(dim is not None for dim in dims[2:]):
        # Each example has a random key of its own, and must draw what it would draw alone: one after the other.
        mapped = {
            k: jnp.moveaxis(x, dim, 0)
            for k, (x, dim) in enumerate(zip(args, dims, strict=True))
            if dim is not None
        }

        def one(row: Mapping[int, Any]) -> Any:
            values = [row.get(k, x) for k, x in enumerate(args)]
            return bilinear_p.bind(*values, product=product, params=params, compute=compute)

        return jax.lax.map(one, mapped), 0
    more, own = _split(product, args[2:])
    batched = jax.vmap(
        lambda lhs, rhs: product.bind(lhs, rhs, *more, **dict(params)), in_axes=tuple(dims[:2])
    )
    return _with(lambda _: compute, own, batched, *args[:2]), 0


batching.primitive_batchers[bilinear_p] = _batch


def _remat(saveable: Callable[..., Any], unknown: Sequence[bool], held: Sequence[bool], eqn: Any) -> Any:
    """How `jax.checkpoint` splits it: its policy is asked about the product, however that is computed.

    A policy that would move it to the host has it computed again instead.
    """
    inputs = [
        x for x, here in zip(eqn.invars, held, strict=True) if not isinstance(x, jcore.Literal) and not here
    ]
    if any(unknown):
        return None, eqn, [True], [True], inputs
    avals = [x.aval for x in eqn.invars[: OPERANDS.get(eqn.params["product"].name, 2)]]
    verdict = saveable(eqn.params["product"], *avals, **dict(eqn.params["params"]))
    if verdict is True or type(verdict).__name__ == "SaveableType":
        return eqn, None, [False], [False], []
    return eqn, eqn, [False], [True], inputs


partial_eval.partial_eval_jaxpr_custom_rules[bilinear_p] = _remat


def _with(
    compute: Callable[[list[bool]], Compute], extra: Sequence[Any], f: Callable[..., Any], *args: Any
) -> Any:
    """``f(*args)`` with other products; `compute` is told which operands of each are made of `args`."""
    closed = jax.make_jaxpr(f)(*args)
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, args, strict=True))
    made = set(closed.jaxpr.invars)
    for eqn in closed.jaxpr.eqns:
        operands = [x.val if isinstance(x, jcore.Literal) else env[x] for x in eqn.invars]
        of_args = [not isinstance(x, jcore.Literal) and x in made for x in eqn.invars]
        if eqn.primitive.name in (*BILINEAR, GROUPED):
            outs = bilinear(eqn.primitive, eqn.params, compute(of_args), *operands, *extra)
        else:
            outs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        env.update(zip(eqn.outvars, outs if eqn.primitive.multiple_results else [outs], strict=True))
        made.update(eqn.outvars if any(of_args) else ())
    (result,) = closed.jaxpr.outvars
    return env[result]
