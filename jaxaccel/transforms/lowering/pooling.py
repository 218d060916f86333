"""Pooling over windows in forms that XLA:CPU runs fast; values and gradients are those of `jax.lax.reduce_window`.

``blocks`` is for windows that do not overlap: a reshape and a reduction. ``taps`` is for all others: one strided slice
for each place in the window. Of equal elements the first one in the window gets the gradient, as XLA has it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, Any]


def forms(params: Params, shape: Sequence[int]) -> list[str]:
    """The forms in which the pooling of an array of this shape can be computed, ``xla`` first."""
    if any(d != 1 for d in params.get("base_dilation", ())) or 0 in shape or 0 in sizes(params, shape):
        return ["xla"]
    window, strides = params["window_dimensions"], params["window_strides"]
    apart = all(d == 1 for d in params.get("window_dilation", ())) and tuple(window) == tuple(strides)
    return ["xla", *(["blocks"] if apart else []), "taps"]


def maximum(x: jax.Array, params: Params, form: str) -> jax.Array:
    """``reduce_window`` with `jax.lax.max`."""
    return _split(x, params, form, _lowest(x.dtype)).reduce(jnp.maximum)


def total(x: jax.Array, params: Params, form: str) -> jax.Array:
    """``reduce_window`` with `jax.lax.add`."""
    return _split(x, params, form, 0).reduce(jnp.add)


def scatter(source: jax.Array, x: jax.Array, params: Params, form: str) -> jax.Array:
    """``select_and_scatter_add`` with `jax.lax.ge`: the gradient of a maximum, added up in x."""
    parts = _split(x, params, form, _lowest(x.dtype))
    zero = jnp.zeros((), source.dtype)
    return parts.back([jnp.where(first, source, zero) for first in parts.first()])


def gather(tangents: jax.Array, x: jax.Array, params: Params, form: str) -> jax.Array:
    """``select_and_gather_add`` with `jax.lax.ge`: the tangents at the places of the maxima."""
    chosen = _split(x, params, form, _lowest(x.dtype)).first()
    moved = _split(tangents, params, form, 0).taps
    zero = jnp.zeros((), tangents.dtype)
    return sum((jnp.where(c, t, zero) for c, t in zip(chosen, moved, strict=True)), start=zero)


class _Split:
    """An array as one array for each place in the window, each with one element a window."""

    def __init__(self, taps: list[jax.Array], back: Callable[[list[jax.Array]], jax.Array]) -> None:
        self.taps, self.back = taps, back

    def reduce(self, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        """All places combined."""
        out = self.taps[0]
        for tap in self.taps[1:]:
            out = combine(out, tap)
        return out

    def first(self) -> list[jax.Array]:
        """For each place, whether it holds the first of the largest elements."""
        # By number, not by which equals the maximum: XLA may compute the elements anew, rounded differently, for that.
        largest, place = self.taps[0], jnp.zeros(self.taps[0].shape, jnp.int32)
        for i, tap in enumerate(self.taps[1:], 1):
            larger = tap > largest
            largest, place = jnp.where(larger, tap, largest), jnp.where(larger, i, place)
        return [place == i for i in range(len(self.taps))]


def _split(x: jax.Array, params: Params, form: str, fill: Any) -> _Split:
    window, strides = params["window_dimensions"], params["window_strides"]
    dilation = params.get("window_dilation") or (1,) * x.ndim
    counts = sizes(params, x.shape)
    low = [p[0] for p in params["padding"]]
    # Just as much padding as the windows reach; negative where they leave elements out.
    reach = [
        (n - 1) * s + (w - 1) * d + 1 for n, s, w, d in zip(counts, strides, window, dilation, strict=True)
    ]
    config = [(a, r - a - n, 0) for a, r, n in zip(low, reach, x.shape, strict=True)]
    padded = jax.lax.pad(x, jnp.asarray(fill, x.dtype), config)
    undo = [(-a, -b, 0) for a, b, _ in config]
    places = list(np.ndindex(*window))
    if form == "blocks":
        split = [n for pair in zip(counts, window, strict=True) for n in pair]
        blocks = padded.reshape(split)

        def joined(parts: list[jax.Array]) -> jax.Array:
            stacked = jnp.stack(parts, -1).reshape(*counts, *window)
            order = [axis for k in range(x.ndim) for axis in (k, x.ndim + k)]
            whole = stacked.transpose(order).reshape(padded.shape)
            return jax.lax.pad(whole, jnp.zeros((), whole.dtype), undo)

        taps = [
            blocks[tuple(i for place_axis in place for i in (slice(None), place_axis))] for place in places
        ]
        return _Split(taps, joined)
    starts = [[i * d for i, d in zip(place, dilation, strict=True)] for place in places]
    taps = [
        jax.lax.slice(
            padded,
            start,
            [a + (n - 1) * s + 1 for a, n, s in zip(start, counts, strides, strict=True)],
            strides,
        )
        for start in starts
    ]

    def added(parts: list[jax.Array]) -> jax.Array:
        out = jnp.zeros(reach, parts[0].dtype)
        for start, part in zip(starts, parts, strict=True):
            config = [
                (a, r - a - ((n - 1) * s + 1), s - 1)
                for a, r, n, s in zip(start, reach, counts, strides, strict=True)
            ]
            out = out + jax.lax.pad(part, jnp.zeros((), part.dtype), config)
        return jax.lax.pad(out, jnp.zeros((), out.dtype), undo)

    return _Split(taps, added)


def sizes(params: Params, shape: Sequence[int]) -> list[int]:
    """How many windows fit along each axis."""
    dilation = params.get("window_dilation") or (1,) * len(shape)
    found = []
    for n, w, s, d, (low, high) in zip(
        shape, params["window_dimensions"], params["window_strides"], dilation, params["padding"], strict=True
    ):
        found.append(max(0, (n + low + high - ((w - 1) * d + 1)) // s + 1))
    return found


def _lowest(dtype: Any) -> Any:
    return -math.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
