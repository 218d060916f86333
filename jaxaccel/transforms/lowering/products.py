"""Matrix products in the forms that XLA:CPU runs fast: of integers, of 16-bit numbers, and gradients by weights."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Integers:
    """A matrix product of integers as XLA:CPU runs it: its int8 kernels want two rows and two columns at least.

    Padding a vector with zeros to two of them took from as long to an eighth of the time (4096 x 4096;
    `python -m benchmarks precision_layers`). What is a vector is known last, after `jax.vmap`.
    """

    name: str = "int8"

    def __call__(self, primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """``primitive.bind(lhs, rhs, **params)``."""
        rows, columns = free_sizes(params, lhs.shape, rhs.shape)
        if rows == columns or min(rows, columns) != 1 or params.get("out_sharding") is not None:
            return primitive.bind(lhs, rhs, **params)
        pair, few = [lhs, rhs], 0 if rows == 1 else 1
        pair[few] = jnp.pad(pair[few][..., None], [(0, 0)] * pair[few].ndim + [(0, 1)])
        out = primitive.bind(*pair, **params)
        added = out.ndim - 1 if few else lhs.ndim - len(params["dimension_numbers"][0][0])
        return jax.lax.index_in_dim(out, 0, added, keepdims=False)

    def transposed(self, cotangent: int) -> "Integers":
        """The same: integers have no derivative."""
        return self


def forms(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> list[str]:
    """The forms of a matrix product of operands of these shapes, ``xla`` first.

    - ``swapped``: of a gradient by weights, which sums over the leading axes of both operands, with the narrower one
      first. XLA:CPU copies the first one, transposed, and computes anew for each column what it fused into that.
    """
    sums, batch = params["dimension_numbers"]
    leading = all(sorted(axes) == list(range(len(axes))) for axes in sums) and sums[0] == sums[1]
    if not leading or batch[0] or params.get("out_sharding") is not None:
        return ["xla"]
    rows, columns = free_sizes(params, lhs, rhs)
    known = isinstance(rows, int) and isinstance(columns, int)  # not where a shape is symbolic
    return ["xla", "swapped"] if known and rows > columns > 1 else ["xla"]


def compute(params: Params, lhs: jax.Array, rhs: jax.Array, form: str) -> jax.Array:
    """``dot_general`` in that form."""
    assert form == "swapped"
    sums, batch = params["dimension_numbers"]
    precision = params["precision"]
    changed = {
        "dimension_numbers": (sums[::-1], batch),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,  # one for each operand
    }
    out = jax.lax.dot_general_p.bind(rhs, lhs, **{**params, **changed})
    columns = rhs.ndim - len(sums[1])
    return jnp.transpose(out, (*range(columns, out.ndim), *range(columns)))


def is_vector(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> bool:
    """Whether a matrix product of operands of these shapes multiplies by a single row or column."""
    return min(free_sizes(params, lhs, rhs)) == 1


def free_sizes(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a matrix product."""
    sums, batch = params["dimension_numbers"]
    rows, columns = (
        math.prod(n for a, n in enumerate(shape) if a not in (*sums[k], *batch[k]))
        for k, shape in enumerate((lhs, rhs))
    )
    return rows, columns


def narrow_product(primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """A 16-bit matrix product as XLA:CPU runs it: (batch, rows, sum) x (batch, sum, columns), nothing fused into it.

    In other forms, and with a transposition around it, XLA:CPU compiles bfloat16 products that it then cannot run
    ("Unsupported element type for DotThunk"). It has none with a vector: those are of rounded float32 operands.
    """
    if is_vector(params, lhs.shape, rhs.shape):
        return primitive.bind(lhs.astype(jnp.float32), rhs.astype(jnp.float32), **params)
    (sums, batch), ranks = params["dimension_numbers"], (lhs.ndim, rhs.ndim)
    free = [[a for a in range(ranks[k]) if a not in (*sums[k], *batch[k])] for k in (0, 1)]
    shape = [*(lhs.shape[a] for a in (*batch[0], *free[0])), *(rhs.shape[a] for a in free[1])]
    many = [math.prod(lhs.shape[a] for a in batch[0])] if batch[0] else []
    size, (rows, columns) = (
        math.prod(lhs.shape[a] for a in sums[0]),
        free_sizes(params, lhs.shape, rhs.shape),
    )
    lhs = jnp.transpose(lhs, (*batch[0], *free[0], *sums[0])).reshape(*many, rows, size)
    rhs = jnp.transpose(rhs, (*batch[1], *sums[1], *free[1])).reshape(*many, size, columns)
    first = tuple(range(len(many)))
    numbers = (((lhs.ndim - 1,), (rhs.ndim - 2,)), (first, first))
    lhs, rhs = jax.lax.optimization_barrier((lhs, rhs))
    out = primitive.bind(lhs, rhs, **{**params, "dimension_numbers": numbers})
    return jax.lax.optimization_barrier(out).reshape(shape)
