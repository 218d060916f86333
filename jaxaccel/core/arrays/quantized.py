"""Integers and scales that stand for a dense array."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.arrays.base import StandIn
from jaxaccel.core.interpret import register


@register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantArray(StandIn):
    """Integers that stand for real numbers: ``scale * (qvalue - zero_point)``.

    A pytree of up to three arrays. What holds of it:

    - `qvalue` is int8 and within ±127 (8 bits) or ±7 (4 bits); with a zero point it uses one integer more below.
    - `scale` is float32 and has the rank of `shape`. Along each axis it has size 1 (one scale for all), the size of
      the array (one for each index), or a divisor of it (one for each block of equal length).
    - `zero_point` is None, or int8 of the shape of `scale`.
    - Packed 4-bit values lie two in a byte along the last axis, the even index in the low half; `length` is then the
      size of that axis, and None otherwise. Only `qvalue` is packed.
    - `shape` and `dtype` are those of the array it stands for.
    """

    qvalue: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None = None
    bits: int = dataclasses.field(default=8, metadata={"static": True})
    real: str = dataclasses.field(default="float32", metadata={"static": True})
    """Name of the dtype it stands for."""
    length: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array it stands for."""
        shape = tuple(self.qvalue.shape)
        return shape if self.length is None else (*shape[:-1], self.length)

    def integers(self) -> jax.Array:
        """int8 of shape `shape`: `qvalue`, unpacked."""
        return self.qvalue if self.length is None else unpack(self.qvalue, self.length)

    def unpacked(self) -> "QuantArray":
        """The same with one integer a byte."""
        return dataclasses.replace(self, qvalue=self.integers(), length=None)

    def packed(self) -> "QuantArray":
        """The same with two integers a byte; for 4 bits."""
        if self.length is not None:
            return self
        return dataclasses.replace(self, qvalue=pack(self.qvalue), length=self.shape[-1])

    def materialize(self) -> jax.Array:
        """The dense array, of shape `shape` and dtype `dtype`."""
        values = self.integers().astype(jnp.float32)
        if self.zero_point is not None:
            values = values - expand(self.zero_point, self.shape).astype(jnp.float32)
        return (values * expand(self.scale, self.shape)).astype(self.real)

    def rows(self) -> "QuantArray":
        """The same with axis 0 present in every leaf, so that a loop can take it apart row by row."""
        wide = self.unpacked() if self.ndim == 1 else self
        return wide.with_scales(lambda scale: broadcast_scale(scale, 0, self.shape[0]))

    def along_devices(self, names: Sequence[Any], parts: Sequence[int]) -> tuple["QuantArray", Any]:
        """The same, and for each leaf the mesh axes that its axes are split over.

        Pairs in a byte are unpacked, and scales of blocks that do not divide by the devices are repeated.
        """

        def whole(scale: jax.Array) -> jax.Array:
            for axis, (count, size) in enumerate(zip(parts, self.shape, strict=True)):
                if count > 1 and scale.shape[axis] > 1 and scale.shape[axis] % count:
                    scale = broadcast_scale(scale, axis, size)
            return scale

        value = (self.unpacked() if parts and parts[-1] > 1 else self).with_scales(whole)
        sizes = value.scale.shape
        of_scale = tuple(name if size > 1 else None for name, size in zip(names, sizes, strict=True))
        return value, value.with_scales(lambda _: of_scale, qvalue=tuple(names))

    def with_scales(self, change: Any, **fields: Any) -> "QuantArray":
        """The same with `change` applied to scale and zero point, and other fields replaced."""
        zero_point = None if self.zero_point is None else change(self.zero_point)
        return dataclasses.replace(self, scale=change(self.scale), zero_point=zero_point, **fields)


def pack(values: jax.Array) -> jax.Array:
    """4-bit integers (..., n) in int8 -> (..., ceil(n / 2)) bytes in int8, the even index in the low half."""
    if values.shape[-1] % 2:
        values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    low, high = values[..., ::2], values[..., 1::2]
    return (low & 0xF) | (high << 4)


def unpack(packed: jax.Array, length: int) -> jax.Array:
    """The reverse of `pack`, for a last axis of `length`."""
    low, high = (packed << 4) >> 4, packed >> 4  # arithmetic shifts bring the sign back
    pairs = jnp.stack([low, high], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :length]


def expand(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Scales of blocks repeated to the size of their axis; axes of size 1 stay, for broadcasting."""
    for axis, size in enumerate(shape):
        if scale.shape[axis] not in (1, size):
            scale = jnp.repeat(scale, size // scale.shape[axis], axis=axis)
    return scale


def broadcast_scale(scale: jax.Array, axis: int, size: int) -> jax.Array:
    """`scale` with all of `axis` present."""
    if scale.shape[axis] == size:
        return scale
    return jnp.repeat(scale, size // scale.shape[axis], axis=axis)
