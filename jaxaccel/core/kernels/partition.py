"""Calls of the kernels by several devices: each computes the examples and the features that it has."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxaccel.core.interpret.foreign_call import foreign_call
from jaxaccel.core.kernels.library import CONVOLUTION, PRODUCT
from jaxaccel.core.kernels.window import Direction, Plan


def call_convolution(
    plan: Plan, out: Any, operands: Sequence[jax.Array], extras: tuple[int, ...] = (), relu: bool = False
) -> jax.Array:
    """Calls the kernel.

    Args:
      plan: what to compute.
      out: shape and dtype of the result.
      operands: left, right, and those that `extras` name.
      extras: what the further operands are, by the kernel's numbers.
      relu: whether what is negative becomes 0.
    """
    call = functools.partial(_call, plan, out.dtype.name, extras, relu)

    def compute(*operands: jax.Array) -> jax.Array:
        return call(out.shape, operands)

    share = _share(call, compute, _name_factors(plan, [x.ndim for x in operands], len(out.shape)))
    return foreign_call(compute, share, out, *operands)


def call_product(lhs_axes: str, rhs_axes: str, out: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Calls the kernel of matrix products.

    Args:
      lhs_axes: what each axis of `lhs` is: ``b`` the batch, if there is one, ``m`` rows, ``k`` what is summed.
      rhs_axes: the same of `rhs`: ``b``, ``k``, ``n`` columns.
      out: shape and dtype of the result, (batch, rows, columns) or (rows, columns).
      lhs: float32, bfloat16 or int8.
      rhs: the same.
    """
    out_axes = "bmn"[-len(out.shape) :]
    specs = {
        "lhs_spec": [lhs_axes.index(a) for a in "bmk"[-len(out.shape) :]],
        "rhs_spec": [rhs_axes.index(a) for a in "bkn"[-len(out.shape) :]],
        "out_spec": list(range(len(out.shape))),
        "extras": [],
    }

    def call(shape: Any, operands: Sequence[jax.Array]) -> jax.Array:
        return jax.ffi.ffi_call(PRODUCT, jax.ShapeDtypeStruct(shape, out.dtype))(
            *operands, relu=False, **{name: np.array(axes, np.int64) for name, axes in specs.items()}
        )

    def compute(*operands: jax.Array) -> jax.Array:
        return call(out.shape, operands)

    share = _share(call, compute, [list(lhs_axes), list(rhs_axes), list(out_axes)])
    return foreign_call(compute, share, out, lhs, rhs)


def _share(call: Any, compute: Any, factors: Sequence[Sequence[str]]) -> Any:
    """`factors` names the axes of each operand and of the result; devices may share those of one letter."""
    shared = _may_share(factors[-1])
    reduced = _may_share(f for axes in factors[:-1] for f in axes) - shared
    alone = {f for axes in factors for f in axes} - shared - reduced
    share = custom_partitioning(compute)
    share.def_partition(
        functools.partial(_partition, call, factors, reduced),
        sharding_rule=f"{', '.join(' '.join(axes) for axes in factors[:-1])} -> {' '.join(factors[-1])}",
        reduction_factors=tuple(sorted(reduced)),
        need_replication_factors=tuple(sorted(alone)),
    )
    return share


def _may_share(factors: Iterable[str]) -> set[str]:
    return {f for f in factors if len(f) == 1}


def _call(
    plan: Plan, dtype: str, extras: tuple[int, ...], relu: bool, shape: Any, operands: Sequence[jax.Array]
) -> jax.Array:
    numbers = {
        "lhs_spec": plan.lhs_spec, "rhs_spec": plan.rhs_spec, "out_spec": plan.out_spec,
        "strides": plan.strides, "dilation": plan.dilation, "padding": plan.padding, "extras": extras,
    }  # fmt: skip
    return jax.ffi.ffi_call(CONVOLUTION, jax.ShapeDtypeStruct(shape, dtype))(
        *operands,
        direction=np.int64(plan.direction), groups=np.int64(plan.groups), group_axis=np.int64(plan.group_axis),
        relu=relu, **{name: np.array(values, np.int64) for name, values in numbers.items()},
    )  # fmt: skip


def _name_factors(plan: Plan, ranks: Sequence[int], out_rank: int) -> list[list[str]]:
    """Names of the axes of each operand, then of the result: ``b`` and ``o`` are what devices may share.

    ``b`` are examples, over which a gradient by weights is summed; ``o`` are features of the result.
    """
    names = (f"{chr(ord('c') + k // 10)}{chr(ord('a') + k % 10)}" for k in range(100))
    factors = [[next(names) for _ in range(rank)] for rank in (*ranks, out_rank)]
    lhs, rhs, out = factors[0], factors[1], factors[-1]
    lhs[plan.lhs_spec[0]] = "b"
    if plan.direction is Direction.WEIGHTS:
        rhs[plan.rhs_spec[0]] = "b"
        return factors
    out[plan.out_spec[0]] = "b"
    for extra, rank in zip(factors[2:-1], ranks[2:], strict=True):
        if rank == out_rank:
            extra[plan.out_spec[0]] = "b"
    if plan.groups == 1 and len(ranks) == 2:
        rhs[plan.rhs_spec[plan.direction is Direction.INPUTS]] = "o"
        out[plan.out_spec[1]] = "o"
    return factors


def _partition(
    call: Any, factors: Sequence[Sequence[str]], reduced: set[str], mesh: Any, args: Any, result: Any
) -> Any:
    """What each device computes, and where its operands and its result are."""
    placed: dict[str, Any] = {}
    for axes, aval in zip(factors, (*args, result), strict=True):
        spec = getattr(aval.sharding, "spec", ())
        placed.update(
            {f: axis for f, axis in zip(axes, spec, strict=False) if len(f) == 1 and axis is not None}
        )
    specs = [PartitionSpec(*(placed.get(f) for f in axes)) for axes in factors]
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    shape = shardings[-1].shard_shape(result.shape)
    summed = [placed[f] for f in sorted(reduced) if f in placed]

    def compute(*operands: Any) -> Any:
        out = call(shape, operands)
        return jax.lax.psum(out, summed[0]) if summed else out

    return mesh, compute, shardings[-1], tuple(shardings[:-1])
