"""Matrix products in the forms that XLA runs fast, or runs at all: gradients by weights, products of narrow numbers."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.interpret.scan_step import Move
from jaxaccel.core.sizes import exceeds
from jaxaccel.transforms.lowering.base import XLA, Choice, Lowering, Params

MAX_HOISTED_ROWS = 128
"""Rows of a product at each step of a loop up to which one product of all steps, or of several at a step, is faster."""
MAX_SUMMED_ROWS = 16
"""The same of a gradient that is summed over the steps, on a CPU: its larger products are as fast at each step."""
MAX_HOISTED_BYTES = 2**26
"""Bytes that a loop may keep for products outside it."""


def list_forms(params: Params, shapes: Sequence[Any]) -> list[str]:
    """Lists the forms of a matrix product of operands of these shapes, `XLA` first.

    - ``swapped``: of a gradient by weights, which sums over the leading axes of both operands, with the narrower one
      first. XLA:CPU copies the first one, transposed, and computes anew for each column what it fused into that.
    """
    sums, batch = params["dimension_numbers"]
    leading = all(sorted(axes) == list(range(len(axes))) for axes in sums) and sums[0] == sums[1]
    if not leading or batch[0] or params.get("out_sharding") is not None:
        return [XLA]
    rows, columns = get_free_sizes(params, shapes[0].shape, shapes[1].shape)
    wide = exceeds(rows, columns, unknown=False) and exceeds(columns, 1, unknown=False)
    return [XLA, "swapped"] if wide else [XLA]


def multiply(params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """Computes ``dot_general`` in that form."""
    assert form == "swapped"
    lhs, rhs = operands
    sums, batch = params["dimension_numbers"]
    precision = params["precision"]
    changed = {
        "dimension_numbers": (sums[::-1], batch),
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,  # one for each operand
    }
    out = jax.lax.dot_general_p.bind(rhs, lhs, **{**params, **changed})
    columns = rhs.ndim - len(sums[1])
    return jnp.transpose(out, (*range(columns, out.ndim), *range(columns)))


def choose_form(params: Params, shapes: Sequence[Any]) -> Choice:
    """Chooses the only other form there is."""
    return "swapped", "the gradient by weights; XLA:CPU transposes the wider operand"


MATMUL = Lowering(
    jax.lax.dot_general_p, list_forms, multiply, choose_form, evidence="python -m benchmarks retargeted"
)


def should_hoist(platform: str, move: Move, rows: int, kept: int) -> bool:
    """Decides whether a matrix product of a scan is better run once for all steps, outside, or as one with others.

    XLA:CPU adds the product of a step's input into that of its state, so that a product before the loop only writes and
    reads more memory (`python -m benchmarks recurrent`). A GPU starts a kernel for each.

    Args:
      platform: that computes it.
      move: what is to be done with it.
      rows: of its operand at one step.
      kept: bytes that all steps together keep for it. A loop over micro-batches is there to save them.
    """
    if platform == "cpu" and move == "before":
        return False
    most = MAX_SUMMED_ROWS if platform == "cpu" and move == "after" else MAX_HOISTED_ROWS
    return not (exceeds(rows, most, unknown=True) or exceeds(kept, MAX_HOISTED_BYTES, unknown=True))


def is_vector(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> bool:
    """Tells whether a matrix product of operands of these shapes may multiply by a single row or column."""
    return not all(exceeds(n, 1, unknown=False) for n in get_free_sizes(params, lhs, rhs))


def get_free_sizes(params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> tuple[int, int]:
    """Returns the (rows, columns) of a matrix product."""
    sums, batch = params["dimension_numbers"]
    rows, columns = (
        math.prod(n for a, n in enumerate(shape) if a not in (*sums[k], *batch[k]))
        for k, shape in enumerate((lhs, rhs))
    )
    return rows, columns


def multiply_narrow(primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Multiplies 16-bit matrices as XLA:CPU can: (batch, rows, sum) x (batch, sum, columns), nothing fused into it.

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
        get_free_sizes(params, lhs.shape, rhs.shape),
    )
    lhs = jnp.transpose(lhs, (*batch[0], *free[0], *sums[0])).reshape(*many, rows, size)
    rhs = jnp.transpose(rhs, (*batch[1], *sums[1], *free[1])).reshape(*many, size, columns)
    first = tuple(range(len(many)))
    numbers = (((lhs.ndim - 1,), (rhs.ndim - 2,)), (first, first))
    lhs, rhs = jax.lax.optimization_barrier((lhs, rhs))
    out = primitive.bind(lhs, rhs, **{**params, "dimension_numbers": numbers})
    return jax.lax.optimization_barrier(out).reshape(shape)


def multiply_flat(
    primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array, written: tuple[bool, bool] = (True, True)
) -> jax.Array:
    """Multiplies narrow matrices as XLA:GPU can: of two axes and one batch axis, written to memory as such.

    Where an operand is transposed in a way that Triton's tiles cannot follow, as are the heads of an attention over 197
    tokens, XLA:GPU without autotuning leaves the product to an emitter that does not compile for int8 or float8.

    Args:
      primitive: `jax.lax.dot_general_p`.
      params: its parameters.
      lhs: an operand.
      rhs: the other one.
      written: which operands are written to memory before, so that nothing is fused into the product.
    """
    if params.get("out_sharding") is not None:
        return primitive.bind(lhs, rhs, **params)
    pair, axes = [], []
    for k, x in enumerate((lhs, rhs)):
        flat, axis = _flatten(x, *(numbers[k] for numbers in params["dimension_numbers"]))
        pair.append(jax.lax.optimization_barrier(flat) if written[k] else flat)
        axes.append((axis,))
    first = (0,) if params["dimension_numbers"][1][0] else ()
    out = primitive.bind(*pair, **{**params, "dimension_numbers": (tuple(axes), (first, first))})
    return out.reshape(jax.eval_shape(lambda *v: primitive.bind(*v, **params), lhs, rhs).shape)


def _flatten(x: jax.Array, sums: Sequence[int], batch: Sequence[int]) -> tuple[jax.Array, int]:
    """Makes (batch, rows, sum) of an operand, or (batch, sum, rows) where it lies so; and the axis of the sum."""
    free = [a for a in range(x.ndim) if a not in (*sums, *batch)]
    sum_first = [*batch, *sums, *free] == list(range(x.ndim))
    groups = [*([batch] if batch else []), *([sums, free] if sum_first else [free, sums])]
    sizes = [math.prod(x.shape[a] for a in group) for group in groups]
    flat = jnp.transpose(x, [a for group in groups for a in group]).reshape(sizes)
    return flat, len(groups) - (2 if sum_first else 1)
