"""Products of integers: int8 x int8 -> int32, exact, then one multiplication by the scales.

A product is given as JAX's primitive with its parameters, so every form of `dot_general` and
`conv_general_dilated` is covered by two functions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel import numerics
from jaxaccel.arrays import QuantArray

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


def quantised(
    x: jax.Array, primitive: str, params: Mapping[str, Any], operand: int, scale: Any = None
) -> QuantArray:
    """`x` as int8 at a given scalar scale, or at scales of its own (`shared_axes`)."""
    if scale is None:
        scale = numerics.scale_of(numerics.absmax(x, shared_axes(primitive, params, operand, x.ndim)))
    scale = jnp.asarray(scale, jnp.float32)
    scale = scale.reshape([1] * x.ndim) if scale.ndim == 0 else scale
    return QuantArray(numerics.to_integers(x, scale), scale, real=x.dtype.name)


def fits(primitive: str, params: Mapping[str, Any], operand: int, w: QuantArray) -> bool:
    """Whether the scales of `w` can be multiplied in after the sum."""
    return all(w.scale.shape[axis] == 1 for axis in shared_axes(primitive, params, operand, w.ndim))


def product(
    primitive: str, params: Mapping[str, Any], bind: Bind, lhs: QuantArray, rhs: QuantArray
) -> jax.Array:
    """The product of two arrays whose scales `fits`, in float32; zero points are allowed in a matrix product."""
    more: dict[str, Any] = {"preferred_element_type": jnp.dtype("int32"), "precision": None}
    out = bind(lhs.integers(), rhs.integers(), **more).astype(jnp.float32)
    for operand, (x, other) in enumerate(((lhs, rhs), (rhs, lhs))):
        if x.zero_point is not None:
            out = out - _zero_point_term(params, bind, operand, x, other)
    for operand, x in enumerate((lhs, rhs)):
        rank = (lhs if operand else rhs).ndim
        out = out * in_output(primitive, params, operand, x.scale, rank)
    return out


def _zero_point_term(
    params: Mapping[str, Any], bind: Bind, operand: int, x: QuantArray, other: QuantArray
) -> Any:
    """What the zero point of `x` adds to each sum: the sum of the other operand times it."""
    ones = jnp.ones_like(x.integers())
    values = (ones, other.integers()) if operand == 0 else (other.integers(), ones)
    sums = bind(*values, preferred_element_type=jnp.dtype("int32"), precision=None).astype(jnp.float32)
    assert x.zero_point is not None
    return sums * in_output("dot_general", params, operand, x.zero_point, other.ndim).astype(jnp.float32)


def in_output(
    primitive: str, params: Mapping[str, Any], operand: int, scale: jax.Array, other_rank: int
) -> jax.Array:
    """Scales of an operand (1 along `shared_axes`) in the layout of the result, for broadcasting."""
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


def blocked(
    params: Mapping[str, Any], bind: Bind, operand: int, w: QuantArray, x: QuantArray
) -> jax.Array | None:
    """A matrix product with scales for blocks of the one contracted axis, or None where it has another form.

    The blocks become a batch axis of the product, whose results are scaled and summed in float32.
    """
    contracting, batch = params["dimension_numbers"]
    if len(contracting[0]) != 1 or w.zero_point is not None:
        return None
    pair, blocks = [x, x], w.scale.shape[contracting[operand][0]]
    pair[operand] = w
    axes = [contracting[side][0] for side in (0, 1)]
    split = [_split(q, axis, blocks) for q, axis in zip(pair, axes, strict=True)]
    batches = tuple(
        (axis, *(a if a < axis else a + 1 for a in batch[side])) for side, axis in enumerate(axes)
    )
    numbers = (tuple((axis + 1,) for axis in axes), batches)
    changed = {**params, "dimension_numbers": numbers, "out_sharding": None}
    return product("dot_general", changed, lambda *v, **c: bind(*v, **{**changed, **c}), *split).sum(0)


def _split(x: QuantArray, axis: int, blocks: int) -> QuantArray:
    """`x` with `axis` as (blocks, what is left); its scales are one for all, or one for each block."""
    q = x.integers()
    q = q.reshape(*q.shape[:axis], blocks, q.shape[axis] // blocks, *q.shape[axis + 1 :])
    return QuantArray(q, jnp.expand_dims(x.scale, axis + 1), bits=x.bits, real=x.real)


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
    return x * moved.reshape(shape), w.with_scales(lambda s: jnp.ones([1] * s.ndim, s.dtype))
