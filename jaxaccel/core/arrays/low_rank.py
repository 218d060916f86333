"""Two thin factors that stand for a dense array, and products with them as two thinner products."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.arrays.base import StandIn
from jaxaccel.core.interpret import array_rule, is_compressed, register
from jaxaccel.core.sites import Site


@register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankArray(StandIn):
    """A product of two factors over a rank: ``tensordot(left, right, 1)``, with its axes in another order.

    A pytree of two arrays, each dense or compressed itself. What holds of it:

    - `left` is (..., rank) and `right` (rank, ...).
    - A matrix (in, out) has factors (in, rank) and (rank, out). A kernel (H, W, in, out) has (H, W, in, rank) and
      (rank, out), a convolution to `rank` channels and one of 1x1 (Zhang et al. 2015, arXiv:1505.06798), and so have
      kernels of one and of three dimensions; or
      (H, in, rank) and (rank, W, out), a vertical convolution and a horizontal one (Jaderberg et al. 2014,
      arXiv:1405.3866), which `axes` puts in order.
    - Of a stack of layers both factors have one more axis in front, and each layer is a product of its own.
    - `shape` and `dtype` are those of the array it stands for.
    """

    left: Any
    right: Any
    axes: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    """Order in which the axes of the product are those of the array (of a layer); None where they are."""
    real: str = dataclasses.field(default="float32", metadata={"static": True})
    """Name of the dtype it stands for."""
    stacked: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether the first axes of both factors, and of the array, count layers."""

    @property
    def rank(self) -> int:
        """How many products of columns and rows it sums."""
        return self.left.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array it stands for."""
        lead = int(self.stacked)
        sizes = (*self.left.shape[lead:-1], *self.right.shape[lead + 1 :])
        layer = sizes if self.axes is None else tuple(sizes[axis] for axis in self.axes)
        return (*self.left.shape[:lead], *layer)

    def materialize(self) -> jax.Array:
        """The dense array, of shape `shape` and dtype `dtype`."""

        def of_layer(left: jax.Array, right: jax.Array) -> jax.Array:
            product = jnp.tensordot(left, right, 1)
            return product if self.axes is None else product.transpose(self.axes)

        make = jax.vmap(of_layer) if self.stacked else of_layer
        return make(materialize(self.left), materialize(self.right)).astype(self.real)

    def rows(self) -> Any:
        """The factors of the layers of a stack; else the dense array, whose rows share them."""
        if not self.stacked:
            return self.materialize()
        left, right = (x.rows() if is_compressed(x) else x for x in (self.left, self.right))
        return dataclasses.replace(self, left=left, right=right, stacked=False)

    def along_devices(self, names: Sequence[Any], parts: Sequence[int]) -> tuple["LowRankArray", Any]:
        """The same, and for each leaf the mesh axes that its axes are split over: the rank is whole everywhere."""
        order = self.axes or tuple(range(self.ndim))
        found = dict(zip(order, zip(names, parts, strict=True), strict=True))
        split, one = [found[axis] for axis in range(self.ndim)], (None, 1)
        cut = len(self.left.shape) - 1
        sides = [
            _along(factor, pairs)
            for factor, pairs in ((self.left, [*split[:cut], one]), (self.right, [one, *split[cut:]]))
        ]
        values, specs = zip(*sides, strict=True)
        return tuple(dataclasses.replace(self, left=a, right=b) for a, b in (values, specs))  # type: ignore[return-value]


def _along(factor: Any, pairs: Sequence[tuple[Any, int]]) -> tuple[Any, Any]:
    names, parts = zip(*pairs, strict=True)
    return factor.along_devices(names, parts) if is_compressed(factor) else (factor, names)


@array_rule(LowRankArray, "pvary", "pcast", "pbroadcast")
def _leafwise(site: Site, x: LowRankArray) -> LowRankArray:
    return jax.tree.map(site.bind, x)


def materialize(x: Any) -> jax.Array:
    """`x`, or what it stands for."""
    return x.materialize() if is_compressed(x) else x


@array_rule(LowRankArray, "convert_element_type")
def _convert(site: Site, x: LowRankArray) -> Any:
    dtype = jnp.dtype(site.params["new_dtype"])
    return dataclasses.replace(x, real=dtype.name) if jnp.issubdtype(dtype, jnp.floating) else NotImplemented


@array_rule(LowRankArray, "copy", "copy_p")
def _same(site: Site, x: LowRankArray) -> LowRankArray:
    return x


@array_rule(LowRankArray, "transpose")
def _transpose(site: Site, x: LowRankArray) -> Any:
    if x.stacked:  # the axis of layers might move
        return NotImplemented
    axes = x.axes or tuple(range(x.ndim))
    return dataclasses.replace(x, axes=tuple(axes[axis] for axis in site.params["permutation"]))


@array_rule(LowRankArray, "dot_general")
def _dot(site: Site, lhs: Any, rhs: Any) -> Any:
    if isinstance(lhs, LowRankArray) and isinstance(rhs, LowRankArray):
        return NotImplemented
    (lhs_axes, rhs_axes), (lhs_batch, _) = site.params["dimension_numbers"]
    side = 1 if isinstance(rhs, LowRankArray) else 0
    w, x = (rhs, lhs) if side else (lhs, rhs)
    if w.stacked or lhs_batch or not jnp.issubdtype(x.dtype, jnp.floating):
        return NotImplemented
    w_axes, x_axes = (rhs_axes, lhs_axes) if side else (lhs_axes, rhs_axes)
    order = w.axes or tuple(range(w.ndim))
    summed = [order[axis] for axis in w_axes]  # axes of the product of the factors
    free = [order[axis] for axis in range(w.ndim) if axis not in w_axes]
    cut = w.left.ndim - 1
    if set(summed) == set(range(cut)):
        first, second, rank = w.left, w.right, 0
    elif set(summed) == set(range(cut, w.ndim)):
        first, second, rank = w.right, w.left, w.left.ndim - 1
        summed, free = [axis - cut + 1 for axis in summed], free
    else:
        return NotImplemented
    behind = free if second is w.left else [axis - cut for axis in free]

    def both(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        more = {name: site.params[name] for name in ("precision", "preferred_element_type")}
        thin = jax.lax.dot_general(x, first, ((x_axes, summed), ((), ())), **more).astype(x.dtype)
        out = jax.lax.dot_general(thin, second, (((thin.ndim - 1,), (rank,)), ((), ())), **more)
        # The axes of `second` without the rank stand behind those of x, in their own order.
        kept = x.ndim - len(x_axes)
        out = out.transpose(*range(kept), *(kept + sorted(behind).index(axis) for axis in behind))
        return out if side else jnp.moveaxis(out, range(kept), range(-kept, 0))

    return site.expand(both, x, first, second, names=_names(w, first))


@array_rule(LowRankArray, "gather")
def _lookup(site: Site, w: LowRankArray, indices: Any) -> Any:
    """Rows of a matrix are looked up in its left factor, then multiplied: the dense table is never made."""
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    rows = tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims) == (0,)
    last = tuple(numbers.offset_dims) == (site.output.ndim - 1,)
    if w.stacked or w.axes is not None or w.ndim != 2 or not (rows and last and sizes[1] == w.shape[1]):
        return NotImplemented

    def both(indices: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        found = jax.lax.gather(
            left, indices, numbers, (1, w.rank), mode=site.params["mode"], fill_value=site.params["fill_value"],
            indices_are_sorted=site.params["indices_are_sorted"], unique_indices=site.params["unique_indices"],
        )  # fmt: skip
        return (found @ right).astype(w.real)

    return site.expand(both, indices, w.left, w.right, names=("left", "right"))


@array_rule(LowRankArray, "conv_general_dilated")
def _convolution(site: Site, x: Any, w: Any) -> Any:
    p = site.params
    numbers, n = p["dimension_numbers"], len(p["window_strides"])
    # As Flax has kernels: the axes of the window first, then inputs, then outputs.
    in_order = tuple(numbers.rhs_spec) == (n + 1, n, *range(n))
    plain = p["feature_group_count"] == p["batch_group_count"] == 1 and in_order
    if not isinstance(w, LowRankArray) or w.stacked or not plain:
        return NotImplemented
    if w.axes is None and w.left.ndim == n + 2:  # (window..., in, rank) and (rank, out)
        shapes: Sequence[Any] = (w.left.shape, (*[1] * n, *w.right.shape))
        cut: Sequence[Any] = (slice(None), slice(0, 0))
    elif n == 2 and w.axes == (0, 2, 1, 3) and w.left.ndim == 3:  # (H, in, rank) and (rank, W, out)
        rank, width, out = w.right.shape
        shapes = ((w.left.shape[0], 1, *w.left.shape[1:]), (1, width, rank, out))
        cut = (slice(0, 1), slice(1, 2))
    else:
        return NotImplemented

    def part(x: jax.Array, kernel: jax.Array, here: slice) -> jax.Array:
        def of_axes(values: Sequence[Any], other: Any) -> tuple[Any, ...]:
            return tuple(v if i in range(n)[here] else other for i, v in enumerate(values))

        return jax.lax.conv_general_dilated(
            x, kernel, of_axes(p["window_strides"], 1), of_axes(p["padding"], (0, 0)),
            of_axes(p["lhs_dilation"], 1), of_axes(p["rhs_dilation"], 1), numbers,
            precision=p["precision"], preferred_element_type=p["preferred_element_type"],
        ).astype(x.dtype)  # fmt: skip

    def both(x: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        right = jnp.moveaxis(right, 0, -2).reshape(shapes[1])
        return part(part(x, left.reshape(shapes[0]), cut[0]), right, cut[1])

    return site.expand(both, x, w.left, w.right, names=("left", "right"))


def _names(w: LowRankArray, first: Any) -> tuple[str, str]:
    return ("left", "right") if first is w.left else ("right", "left")
