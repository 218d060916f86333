"""Pooling over windows in forms that XLA:CPU runs fast; values and gradients are those of `jax.lax.reduce_window`.

``blocks`` is for windows that do not overlap: a reshape and a reduction. ``taps`` is for all others: one strided slice
for each place in the window. Of equal elements the first one in the window gets the gradient, as XLA has it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.sizes import exceeds
from jaxaccel.transforms.lowering.base import XLA, Choice, Lowering, Params

MAX_UNROLLED_TAPS = 9
"""Elements of a window up to which one slice for each of them is fast."""
MAX_UNROLLED_SUM_TAPS = 64
"""The same for sums of windows at every place."""
MAX_UNROLLED_BYTES = 2**26
"""Bytes of an input up to which several passes over it cost little."""


def list_forms(params: Params, shape: Sequence[int]) -> list[str]:
    """Lists the forms in which the pooling of an array of this shape can be computed, `XLA` first."""
    widths = params["window_dimensions"]
    if (
        any(not isinstance(n, int) for n, w in zip(shape, widths, strict=True) if w > 1)
        or any(d != 1 for d in params.get("base_dilation", ()))
        or 0 in shape
        or 0 in count_windows(params, shape)
    ):
        return [XLA]
    undilated = all(d == 1 for d in params.get("window_dilation", ()))
    return [XLA, *(["blocks"] if undilated and _are_apart(params) else []), "taps"]


def pool_maximum(params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """Computes ``reduce_window`` with `jax.lax.max`."""
    (x,) = operands
    return _split(x, params, form, _lowest(x.dtype)).reduce(jnp.maximum)


def pool_sum(params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """Computes ``reduce_window`` with `jax.lax.add`."""
    (x,) = operands
    return _split(x, params, form, 0).reduce(jnp.add)


def scatter_gradient(params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """Computes ``select_and_scatter_add`` with `jax.lax.ge`: the gradient of a maximum, added up in its operand."""
    source, x = operands
    parts = _split(x, params, form, _lowest(x.dtype))
    zero = jnp.zeros((), source.dtype)
    return parts.back([jnp.where(first, source, zero) for first in parts.first()])


def _list_pooling_forms(params: Params, shapes: Sequence[Any]) -> list[str]:
    return list_forms(params, shapes[0].shape)


def _list_gradient_forms(params: Params, shapes: Sequence[Any]) -> list[str]:
    return list_forms(params, shapes[1].shape) if params["select_prim"] is jax.lax.ge_p else [XLA]


def _choose_pooling(params: Params, shapes: Sequence[Any]) -> Choice:
    if _are_apart(params):
        return "blocks", "windows that do not overlap"
    nbytes = math.prod(shapes[0].shape) * shapes[0].dtype.itemsize
    small = not exceeds(nbytes, MAX_UNROLLED_BYTES, unknown=True)
    if math.prod(params["window_dimensions"]) <= MAX_UNROLLED_TAPS and small:
        return "taps", "a window of few elements"
    return XLA, ""


def _choose_sum(params: Params, shapes: Sequence[Any]) -> Choice:
    everywhere = set(params["window_strides"]) == {1} and _overlap(params, shapes[0].shape)
    few = math.prod(params["window_dimensions"]) <= MAX_UNROLLED_SUM_TAPS
    if everywhere and few and not _are_apart(params):
        return "taps", "windows at every place: the gradient of a sum"
    return _choose_pooling(params, shapes)


def _choose_gradient(params: Params, shapes: Sequence[Any]) -> Choice:
    reason = "XLA:CPU scatters one element at a time"
    if _are_apart(params):
        return "blocks", reason
    return ("taps", reason) if math.prod(params["window_dimensions"]) <= MAX_UNROLLED_TAPS else (XLA, "")


def _are_apart(params: Params) -> bool:
    """Tells whether each window begins where the last one ends."""
    return tuple(params["window_dimensions"]) == tuple(params["window_strides"])


def _overlap(params: Params, shape: Sequence[int]) -> bool:
    """Tells whether there is more than one window along an axis on which windows are larger than 1."""
    counts = count_windows(params, shape)
    return any(w > 1 and n > 1 for n, w in zip(counts, params["window_dimensions"], strict=True))


EVIDENCE = "python -m benchmarks lowerings --sites pool"
MAXIMUM = Lowering(jax.lax.reduce_window_max_p, _list_pooling_forms, pool_maximum, _choose_pooling, EVIDENCE)
SUM = Lowering(jax.lax.reduce_window_sum_p, _list_pooling_forms, pool_sum, _choose_sum, EVIDENCE)
MAXIMUM_GRADIENT = Lowering(
    jax.lax.select_and_scatter_add_p, _list_gradient_forms, scatter_gradient, _choose_gradient, EVIDENCE
)


class _Split:
    """An array is split into one for each place in the window, each with one element a window."""

    def __init__(self, taps: list[jax.Array], back: Callable[[list[jax.Array]], jax.Array]) -> None:
        self.taps, self.back = taps, back

    def reduce(self, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        """Combines all places."""
        out = self.taps[0]
        for tap in self.taps[1:]:
            out = combine(out, tap)
        return out

    def first(self) -> list[jax.Array]:
        """Tells for each place whether it holds the first of the largest elements."""
        # By number, not by which equals the maximum: XLA may compute the elements anew, rounded differently, for that.
        largest, place = self.taps[0], jnp.zeros(self.taps[0].shape, jnp.int32)
        for i, tap in enumerate(self.taps[1:], 1):
            larger = tap > largest
            largest, place = jnp.where(larger, tap, largest), jnp.where(larger, i, place)
        return [place == i for i in range(len(self.taps))]


def _split(x: jax.Array, params: Params, form: str, fill: Any) -> _Split:
    window, strides = params["window_dimensions"], params["window_strides"]
    dilation = params.get("window_dilation") or (1,) * x.ndim
    counts = count_windows(params, x.shape)
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


def count_windows(params: Params, shape: Sequence[int]) -> list[int]:
    """Counts the windows that fit along each axis."""
    dilation = params.get("window_dilation") or (1,) * len(shape)
    found = []
    for n, w, s, d, (low, high) in zip(
        shape, params["window_dimensions"], params["window_strides"], dilation, params["padding"], strict=True
    ):
        found.append(max(0, (n + low + high - ((w - 1) * d + 1)) // s + 1))
    return found


def _lowest(dtype: Any) -> Any:
    return -math.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
