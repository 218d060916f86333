"""A convolution in one layout: (N, spatial..., C) with (window..., I, O) to (N, spatial..., O)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.transforms.lowering.base import Params


@dataclasses.dataclass(frozen=True)
class Canonical:
    """A convolution of (N, spatial..., C) with (window..., I, O) to (N, spatial..., O)."""

    numbers: Any
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    window: tuple[int, ...]
    sizes: tuple[int, ...]
    """Sizes of the output, along the window's axes."""
    features: int
    padding: tuple[tuple[int, int, int], ...]
    """For `jax.lax.pad`: exactly what the windows reach, and the dilation of the input."""

    @classmethod
    def of(cls, params: Params, lhs: Sequence[int], rhs: Sequence[int]) -> "Canonical":
        """Makes that of operands of these shapes."""
        numbers = params["dimension_numbers"]
        spatial = [lhs[a] for a in numbers.lhs_spec[2:]]
        window = tuple(rhs[a] for a in numbers.rhs_spec[2:])
        strides, dilation = tuple(params["window_strides"]), tuple(params["rhs_dilation"])
        sizes, padding = [], []
        for n, w, s, d, inner, (low, high) in zip(
            spatial, window, strides, dilation, params["lhs_dilation"], params["padding"], strict=True
        ):
            wide = (n - 1) * inner + 1 if n else 0
            size = max(0, (wide + low + high - ((w - 1) * d + 1)) // s + 1)
            reach = (size - 1) * s + (w - 1) * d + 1
            sizes.append(size)
            padding.append((low, reach - low - wide, inner - 1))
        features = lhs[numbers.lhs_spec[1]]
        return cls(numbers, strides, dilation, window, tuple(sizes), features, tuple(padding))

    @property
    def is_channels_last(self) -> bool:
        """Tells whether all three arrays have that layout already."""
        n = len(self.window) + 2
        last = (0, n - 1, *range(1, n - 1))
        return self.numbers == (last, (n - 1, n - 2, *range(n - 2)), last)

    @property
    def taps(self) -> int:
        """Number of places in the window."""
        return math.prod(self.window)

    def inputs(self, lhs: jax.Array) -> jax.Array:
        """Brings `lhs` into that layout, padded."""
        spec = self.numbers.lhs_spec
        x = jnp.transpose(lhs, (spec[0], *spec[2:], spec[1]))
        return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *self.padding, (0, 0, 0)])

    def weights(self, rhs: jax.Array) -> jax.Array:
        """Brings `rhs` into that layout."""
        spec = self.numbers.rhs_spec
        return jnp.transpose(rhs, (*spec[2:], spec[1], spec[0]))

    def output(self, out: jax.Array) -> jax.Array:
        """Brings the result into the layout that was asked for."""
        return from_last(out, self.numbers.out_spec)

    def tap(self, x: jax.Array, place: Sequence[int]) -> jax.Array:
        """Slices the inputs that one place in the window meets: (N, spatial of the output..., C)."""
        start = [i * d for i, d in zip(place, self.dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, self.sizes, self.strides, strict=True)]
        return jax.lax.slice(x, [0, *start, 0], [x.shape[0], *stop, x.shape[-1]], [1, *self.strides, 1])

    def window_at(self, x: jax.Array, place: Sequence[int]) -> jax.Array:
        """Slices the inputs that one output place is made of: (N, window..., C)."""
        start = [i * s for i, s in zip(place, self.strides, strict=True)]
        stop = [a + (w - 1) * d + 1 for a, w, d in zip(start, self.window, self.dilation, strict=True)]
        return jax.lax.slice(x, [0, *start, 0], [x.shape[0], *stop, x.shape[-1]], [1, *self.dilation, 1])


def from_last(out: jax.Array, spec: Sequence[int]) -> jax.Array:
    """Brings (N, spatial..., O) into the layout of `spec`."""
    order = [0] * out.ndim
    for axis, source in zip(spec, (0, out.ndim - 1, *range(1, out.ndim - 1)), strict=True):
        order[axis] = source
    return jnp.transpose(out, order)
