"""What the inputs of each weight are like: their norms and covariances over some batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.interpret import Observation, Transformation, is_compressed, transform
from jaxaccel.core.options import checked
from jaxaccel.core.sites import BILINEAR, Site
from jaxaccel.errors import UserError
from jaxaccel.transforms.calibrate import compile_observer

PyTree = Any


@checked
def input_norms(
    f: Callable[..., Any], params: PyTree, batches: Iterable[Any], *, argnums: int | Sequence[int] = 0
) -> dict[str, jax.Array]:
    """The root mean square of each input of each weight of f, (in,) by path; for ``ja.prune(criterion="wanda")``.

    Of a convolution that is the mean over the pixels of its input, each counted once whatever strides, dilation and
    padding make of it. Left out are weights that `input_covariances` leaves out, but not for the order of their axes
    in a convolution.

    Args:
      f: called as ``f(params, *batch)``.
      params: its parameters.
      batches: each a tuple of further arguments, or a single one.
      argnums: which arguments hold the parameters.

    Raises:
      UserError: there are no batches, or f has no product with a parameter.
    """
    found = _moments(f, params, batches, argnums, _squares)
    return {path: jnp.sqrt(total / count) for path, (total, count) in found.items()}


@checked
def input_covariances(
    f: Callable[..., Any], params: PyTree, batches: Iterable[Any], *, argnums: int | Sequence[int] = 0
) -> dict[str, jax.Array]:
    """The mean of x x^T over what each weight of f multiplies, by path; for ``ja.low_rank(covariances=)``.

    Of a kernel (H, W, in, out) x is a window of H * W * in numbers, in the order of the kernel, and likewise in one or
    three dimensions. There is one for each output pixel: strides, dilation (of the input too, in a transposed
    convolution) and padding count, zeros included. Left out are weights that are used in a grouped convolution, that
    are summed over axes which are not their first, or that f transposes or reverses first.

    Args:
      f: called as ``f(params, *batch)``.
      params: its parameters.
      batches: each a tuple of further arguments, or a single one. Some thousand rows (of a convolution: pixels) per
        input.
      argnums: which arguments hold the parameters.

    Raises:
      UserError: there are no batches, or f has no product with a parameter.
    """
    found = _moments(f, params, batches, argnums, _outer)
    return {path: total / count for path, (total, count) in found.items()}


def _moments(
    f: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    argnums: Any,
    measure: Callable[[jax.Array], jax.Array],
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By path: (sum of the measures, number of rows)."""

    def rule(site: Site, lhs: Any, rhs: Any) -> Any:
        dense = [x.materialize() if is_compressed(x) else x for x in (lhs, rhs)]
        rows = None if site.weight is None else _rows(site, site.weight, dense, whole=measure is _outer)
        if rows is not None:
            site.observe((measure(rows.astype(jnp.float32)), jnp.float32(len(rows))))
        return site.bind(*dense)

    zeros = Observation(
        lambda x: jax.tree.map(lambda leaf: leaf.sum(0), x),
        lambda shape: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape),
    )

    def moved(site: Site, x: Any) -> Any:
        """Behind it a parameter is no longer known: its inputs are other axes, or stand in another order."""
        return site.bind(x.materialize() if is_compressed(x) else x)

    rules = {**dict.fromkeys(BILINEAR, rule), "gather": lambda site, *_: NotImplemented}
    rules |= dict.fromkeys(("transpose", "rev"), moved)
    t = Transformation("moments", rules, argnums, arrays=True, primal_only=True, observation=zeros)
    observe = compile_observer(transform(f, t))
    totals: dict[str, tuple[jax.Array, jax.Array]] = {}
    some = False
    for batch in batches:
        some = True
        for name, (total, count) in observe(
            params, *(batch if isinstance(batch, tuple) else (batch,))
        ).items():
            path = name.split("#")[0]  # a weight that is used twice is one weight
            before = totals.get(path, (0.0, 0.0))
            totals[path] = (before[0] + total, before[1] + count)
    if not some:
        raise UserError("the inputs of weights need at least one batch")
    if not totals:
        raise UserError(
            "f multiplies no parameter whose first axes are its inputs (argnums says which arguments hold them)"
        )
    return totals


def _rows(site: Site, side: int, operands: Sequence[jax.Array], whole: bool) -> jax.Array | None:
    """What the weight multiplies as rows: (N, inputs); windows of a convolution where `whole`, else its pixels."""
    x = operands[1 - side]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    numbers = site.params["dimension_numbers"]
    if site.primitive == "dot_general":
        contracting, batch = numbers
        if batch[side] or list(contracting[side]) != list(range(len(contracting[side]))):
            return None
        x = jnp.moveaxis(x, contracting[1 - side], range(-len(contracting[side]), 0))
        return x.reshape(-1, _product(x.shape[-len(contracting[side]) :]))
    if side != 1 or site.params["feature_group_count"] != 1 or site.params["batch_group_count"] != 1:
        return None
    if not whole:
        return jnp.moveaxis(x, numbers.lhs_spec[1], -1).reshape(-1, x.shape[numbers.lhs_spec[1]])
    *window, inputs, _ = operands[1].shape
    last = operands[1].ndim - 1
    if tuple(numbers.rhs_spec) != (last, last - 1, *range(last - 1)):
        return None
    windows = jax.lax.conv_general_dilated_patches(
        x, window, site.params["window_strides"], site.params["padding"], site.params["lhs_dilation"],
        site.params["rhs_dilation"], numbers, precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    # JAX has the channels of a window first, (in, H, W); kernels have them last.
    windows = jnp.moveaxis(windows, numbers.out_spec[1], -1).reshape(-1, inputs, *window)
    return jnp.moveaxis(windows, 1, -1).reshape(len(windows), -1)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _squares(rows: jax.Array) -> jax.Array:
    return jnp.sum(rows**2, 0)


def _outer(rows: jax.Array) -> jax.Array:
    return jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
