"""Products of integers: int8 x int8 -> int32, exact, then one multiplication by the scales.

A product is given as JAX's primitive with its parameters, so every form of `dot_general` and
`conv_general_dilated` is covered by two functions.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.arrays import QuantArray, expand
from jaxaccel.core.sites import Site

Bind = Callable[..., jax.Array]
"""``bind(lhs, rhs, **changed_params)``: the primitive itself."""


def shared_axes(primitive: str, params: Mapping[str, Any], operand: int, ndim: int) -> list[int]:
    """Axes of an operand over which one scale must be shared, so that it can be multiplied in after the sum.

    A matrix product keeps a scale for each row (token), a convolution one for each example.
    """
    numbers = params["dimension_numbers"]
    if primitive == "dot_general":
        return list(numbers[0][operand])
    if operand == 1:
        return [axis for axis in range(ndim) if axis != numbers.rhs_spec[0]]
    if params["batch_group_count"] > 1:
        return list(range(ndim))
    return [axis for axis in range(ndim) if axis != numbers.lhs_spec[0]]


def quantize_operand(
    x: jax.Array, primitive: str, params: Mapping[str, Any], operand: int, scale: Any = None
) -> QuantArray:
    """`x` as int8 at a given scalar scale, or at scales of its own (`shared_axes`)."""
    if scale is None:
        scale = numerics.scale_of(numerics.absmax(x, shared_axes(primitive, params, operand, x.ndim)))
    scale = jnp.asarray(scale, jnp.float32)
    scale = scale.reshape([1] * x.ndim) if scale.ndim == 0 else scale
    return QuantArray(numerics.to_integers(x, scale), scale, real=x.dtype.name)


def can_scale_after(primitive: str, params: Mapping[str, Any], operand: int, w: QuantArray) -> bool:
    """Whether the scales of `w` can be multiplied in after the sum."""
    return all(w.scale.shape[axis] == 1 for axis in shared_axes(primitive, params, operand, w.ndim))


def may_overflow(primitive: str, params: Mapping[str, Any], lhs: Any, rhs: Any) -> bool:
    """Whether a sum of products of their integers, without zero points, may not fit in int32; floats become int8."""
    if primitive == "dot_general":
        terms = math.prod(lhs.shape[axis] for axis in params["dimension_numbers"][0][0])
    else:
        outputs = params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(n for axis, n in enumerate(rhs.shape) if axis != outputs)
    return terms * _largest(lhs) * _largest(rhs) > jnp.iinfo(jnp.int32).max


def _largest(x: Any) -> int:
    """The largest magnitude of an integer of `x` without its zero point."""
    if not isinstance(x, QuantArray):
        return numerics.qmax(8)
    return numerics.qmax(x.bits) if x.zero_point is None else 2**x.bits - 1


def multiply_integers(
    primitive: str, params: Mapping[str, Any], bind: Bind, lhs: QuantArray, rhs: QuantArray
) -> jax.Array:
    """Multiplies two arrays that `can_scale_after`, in float32; zero points are allowed in a matrix product."""
    out = bind(lhs.integers(), rhs.integers(), preferred_element_type=jnp.dtype("int32"), precision=None)
    if lhs.zero_point is not None or rhs.zero_point is not None:
        assert primitive == "dot_general"
        out = out + _zero_point_terms(params, lhs, rhs)
    out = out.astype(jnp.float32)
    for operand, x in enumerate((lhs, rhs)):
        out = out * align_with_output(
            primitive, params, operand, expand(x.scale, x.shape), (rhs, lhs)[operand].ndim
        )
    return out


def _zero_point_terms(params: Mapping[str, Any], lhs: QuantArray, rhs: QuantArray) -> jax.Array:
    """What to add to a matrix product of integers for that of the integers without their zero points, exactly.

    sum (a - y)(b - z) = sum ab - y sum b - z sum a + n yz. Terms larger than int32 wrap around, and so do their
    differences, back to the right one.
    """
    sums, zeros = [], []
    for operand, (x, other) in enumerate(((lhs, rhs), (rhs, lhs))):
        contracted = tuple(params["dimension_numbers"][0][operand])
        total = jnp.sum(x.integers(), contracted, dtype=jnp.int32, keepdims=True)
        sums.append(align_with_output("dot_general", params, operand, total, other.ndim))
        point = jnp.zeros([1] * x.ndim, jnp.int32) if x.zero_point is None else expand(x.zero_point, x.shape)
        zeros.append(align_with_output("dot_general", params, operand, point.astype(jnp.int32), other.ndim))
    terms = math.prod(lhs.shape[axis] for axis in params["dimension_numbers"][0][0])
    return terms * zeros[0] * zeros[1] - zeros[0] * sums[1] - zeros[1] * sums[0]


def align_with_output(
    primitive: str, params: Mapping[str, Any], operand: int, scale: jax.Array, other_rank: int
) -> jax.Array:
    """Values of an operand (1 along `shared_axes`), such as scales, in the layout of the result, for broadcasting."""
    numbers = params["dimension_numbers"]
    if primitive == "conv_general_dilated":
        shape = [1] * scale.ndim
        from_axis, to_axis = (
            (numbers.lhs_spec[0], numbers.out_spec[0])
            if operand == 0
            else (numbers.rhs_spec[0], numbers.out_spec[1])
        )
        shape[to_axis] = scale.shape[from_axis]
        return scale.reshape(shape)
    contracting, batch = numbers[0][operand], numbers[1][operand]
    free = [axis for axis in range(scale.ndim) if axis not in (*contracting, *batch)]
    moved = jnp.transpose(scale, (*batch, *free, *contracting))
    sizes = moved.shape
    n_batch, n_free = len(batch), len(free)
    others = [1] * (other_rank - len(contracting) - n_batch)
    own = list(sizes[n_batch : n_batch + n_free])
    return moved.reshape([*sizes[:n_batch], *(own + others if operand == 0 else others + own)])


def multiply_blocked(
    params: Mapping[str, Any], bind: Bind, operand: int, w: QuantArray, x: QuantArray
) -> jax.Array:
    """A matrix product with scales for blocks of the one contracted axis (`is_blocked`).

    The blocks become a batch axis of the product, whose results are scaled and summed in float32.
    """
    contracting, batch = params["dimension_numbers"]
    pair, blocks = [x, x], w.scale.shape[contracting[operand][0]]
    pair[operand] = w
    axes = [contracting[side][0] for side in (0, 1)]
    split = [_split(q, axis, blocks) for q, axis in zip(pair, axes, strict=True)]
    batches = tuple(
        (axis, *(a if a < axis else a + 1 for a in batch[side])) for side, axis in enumerate(axes)
    )
    numbers = (tuple((axis + 1,) for axis in axes), batches)
    changed = {**params, "dimension_numbers": numbers, "out_sharding": None}
    return multiply_integers(
        "dot_general", changed, lambda *v, **c: bind(*v, **{**changed, **c}), *split
    ).sum(0)


def _split(x: QuantArray, axis: int, blocks: int) -> QuantArray:
    """`x` with `axis` as (blocks, what is left); its scales are one for all, or one for each block."""
    q = x.integers()
    q = q.reshape(*q.shape[:axis], blocks, q.shape[axis] // blocks, *q.shape[axis + 1 :])
    return x.unpacked().with_scales(lambda scale: jnp.expand_dims(scale, axis + 1), qvalue=q)


def is_blocked(params: Mapping[str, Any], side: int, w: QuantArray) -> bool:
    """Whether the one contracted axis of a matrix product has a scale for each of several blocks."""
    axes = shared_axes("dot_general", params, side, w.ndim)
    return len(axes) == 1 and 1 < w.scale.shape[axes[0]] < w.shape[axes[0]]


def scales_contracted_alone(params: Mapping[str, Any], side: int, w: QuantArray) -> bool:
    """Whether the scales vary along contracted axes only, one for each index."""
    axes = shared_axes("dot_general", params, side, w.ndim)
    whole = all(w.scale.shape[a] in (1, w.shape[a]) for a in axes)
    alone = all(w.scale.shape[a] == 1 for a in range(w.ndim) if a not in axes)
    return whole and alone and w.zero_point is None


def fold_scale(params: Mapping[str, Any], side: int, w: QuantArray, x: Any) -> tuple[Any, QuantArray]:
    """Scales along the sum move to the other operand: sum_k x_k (s_k q_k) = sum_k (x_k s_k) q_k."""
    contracting = params["dimension_numbers"][0]
    scale = w.scale
    order = [*contracting[side], *(a for a in range(w.ndim) if a not in contracting[side])]
    sizes = [scale.shape[a] for a in contracting[side]]
    moved = jnp.transpose(scale, order).reshape(sizes)
    order = sorted(range(len(sizes)), key=lambda k: contracting[1 - side][k])
    moved = jnp.transpose(moved, order)
    shape = [1] * x.ndim
    for axis in contracting[1 - side]:
        shape[axis] = sizes[list(contracting[1 - side]).index(axis)]
    return x.astype(jnp.float32) * moved.reshape(shape), w.with_scales(
        lambda s: jnp.ones([1] * s.ndim, s.dtype)
    )


def leave_grouped(site: Site, *operands: Any) -> Any:
    """The rule of grouped products, which stay as they are and are told; a compressed matrix becomes dense."""
    site.record("-", str(site.inputs[0].dtype), "has no form of integers")
    return NotImplemented
