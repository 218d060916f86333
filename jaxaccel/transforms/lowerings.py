"""The forms in which a product can be handed to XLA, and which of them a backend runs fast.

All forms give the same integers. The choices for the CPU are those measured by `benchmarks/precision.py --layers`
(XLA:CPU has fused int8 kernels for ungrouped 2-D convolutions in NHWC with 32 channels or more; beside them int8 is
up to 17 times slower than float32). A form named ``float32`` means: leave the convolution as it was.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.lowerings.convolution import from_last
from jaxaccel.transforms.integer import Bind

Choice = Literal["auto", "int8"]
LANES = 32
"""Channels that the CPU's int8 kernels want."""
PADDED = f"int8, channels padded to {LANES}"
"""Still slower than float32, but faster than fewer channels."""


def choose(
    params: Mapping[str, Any], lhs: Any, rhs: Any, backend: str, choice: Choice = "auto"
) -> tuple[str, str]:
    """(form, reason) for an int8 convolution of operands of these shapes."""
    form, reason = _fastest(params, lhs, rhs, backend)
    if choice == "auto" or form != "float32" or backend == "gpu":
        return form, reason
    return (PADDED if "too few" in reason else "int8"), ""


def _fastest(params: Mapping[str, Any], lhs: Any, rhs: Any, backend: str) -> tuple[str, str]:
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    if backend == "gpu" and grouped:
        return "float32", "grouped int8 convolutions give wrong values on GPUs (openxla/xla#49123)"
    if backend != "cpu":
        return "int8", ""
    numbers = params["dimension_numbers"]
    features = lhs.shape[numbers.lhs_spec[1]]
    if grouped:
        return "float32", "grouped int8 convolutions are slow on the CPU"
    if lhs.ndim > 4 or lhs.ndim < 3:
        return "float32", f"{lhs.ndim - 2}-D int8 convolutions are slow on the CPU"
    if any(d > 1 for d in params["lhs_dilation"]):
        return "float32", "transposed int8 convolutions are slow on the CPU"
    outputs = rhs.shape[numbers.rhs_spec[0]]
    if min(features, outputs) < LANES:
        return "float32", f"{features} x {outputs} channels are too few for int8 on the CPU"
    if _pointwise(params, rhs):
        return "int8 as a matrix product", ""
    if lhs.ndim == 4 and (numbers.lhs_spec != (0, 3, 1, 2) or numbers.out_spec != (0, 3, 1, 2)):
        return "float32", "int8 convolutions with channels first are slow on the CPU"
    if lhs.ndim == 3:
        return "int8 as NHWC", ""
    return "int8", ""


def convolve(form: str, params: Mapping[str, Any], bind: Bind) -> Bind:
    """What takes the place of ``bind``: (lhs, rhs) of int8 -> int32 in the layout of the result."""
    if form == "int8":
        return bind
    if form == "int8 as a matrix product":
        return lambda lhs, rhs, **_: _as_dot(params, lhs, rhs)
    return lambda lhs, rhs, **_: _as_nhwc(params, lhs, rhs, pad=form == PADDED)


@dataclasses.dataclass(frozen=True)
class Integers:
    """A matrix product of integers as XLA:CPU runs it: its int8 kernels want two rows and two columns at least.

    Padding a vector with zeros to two of them took from as long to an eighth of the time (4096 x 4096;
    `benchmarks/precision.py --layers`). What is a vector is known last, after `jax.vmap`.
    """

    name: str = "int8"

    def __call__(
        self, primitive: Any, params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array
    ) -> jax.Array:
        """``primitive.bind(lhs, rhs, **params)``."""
        rows, columns = _free_sizes(params, lhs.shape, rhs.shape)
        if rows == columns or min(rows, columns) != 1 or params.get("out_sharding") is not None:
            return primitive.bind(lhs, rhs, **params)
        pair, few = [lhs, rhs], 0 if rows == 1 else 1
        pair[few] = jnp.pad(pair[few][..., None], [(0, 0)] * pair[few].ndim + [(0, 1)])
        out = primitive.bind(*pair, **params)
        added = out.ndim - 1 if few else lhs.ndim - len(params["dimension_numbers"][0][0])
        return jax.lax.index_in_dim(out, 0, added, keepdims=False)

    def transposed(self, cotangent: int) -> "Integers":
        """The same: integers have no derivative."""
        return self


def is_vector(params: Mapping[str, Any], lhs: Sequence[int], rhs: Sequence[int]) -> bool:
    """Whether a matrix product of operands of these shapes multiplies by a single row or column."""
    return min(_free_sizes(params, lhs, rhs)) == 1


def _free_sizes(params: Mapping[str, Any], lhs: Sequence[int], rhs: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a matrix product."""
    sums, batch = params["dimension_numbers"]
    rows, columns = (
        math.prod(n for a, n in enumerate(shape) if a not in (*sums[k], *batch[k]))
        for k, shape in enumerate((lhs, rhs))
    )
    return rows, columns


def narrow_product(primitive: Any, params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """A 16-bit matrix product as XLA:CPU runs it: (batch, rows, sum) x (batch, sum, columns), nothing fused into it.

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
        _free_sizes(params, lhs.shape, rhs.shape),
    )
    lhs = jnp.transpose(lhs, (*batch[0], *free[0], *sums[0])).reshape(*many, rows, size)
    rhs = jnp.transpose(rhs, (*batch[1], *sums[1], *free[1])).reshape(*many, size, columns)
    first = tuple(range(len(many)))
    numbers = (((lhs.ndim - 1,), (rhs.ndim - 2,)), (first, first))
    lhs, rhs = jax.lax.optimization_barrier((lhs, rhs))
    out = primitive.bind(lhs, rhs, **{**params, "dimension_numbers": numbers})
    return jax.lax.optimization_barrier(out).reshape(shape)


def _pointwise(params: Mapping[str, Any], rhs: Any) -> bool:
    spatial = params["dimension_numbers"].rhs_spec[2:]
    return all(rhs.shape[axis] == 1 for axis in spatial) and all(p == (0, 0) for p in params["padding"])


def _as_dot(params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """A 1x1 convolution as the matrix product that it is; strides take every so many-th pixel."""
    numbers = params["dimension_numbers"]
    lhs = jnp.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    lhs = lhs[(slice(None), *(slice(None, None, s) for s in params["window_strides"]))]
    rhs = jnp.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    rhs = rhs.reshape(rhs.shape[-2:])
    out = jax.lax.dot_general(
        lhs, rhs, (((lhs.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32
    )  # fmt: skip
    return from_last(out, numbers.out_spec)


def _as_nhwc(params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array, pad: bool) -> jax.Array:
    """The convolution with channels last, 1-D as 2-D, and where asked with channels of 0 up to `LANES`."""
    numbers = params["dimension_numbers"]
    lhs = jnp.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    rhs = jnp.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    windows: dict[str, Any] = {
        name: tuple(params[name]) for name in ("window_strides", "padding", "rhs_dilation")
    }
    flat = lhs.ndim == 3
    if flat:
        lhs, rhs = lhs[:, None], rhs[None]
        one: dict[str, Any] = {"window_strides": 1, "padding": (0, 0), "rhs_dilation": 1}
        windows = {name: (one[name], *value) for name, value in windows.items()}
    features = rhs.shape[-1]
    if pad:
        inputs, outputs = -rhs.shape[-2] % LANES, -features % LANES
        lhs = jnp.pad(lhs, [(0, 0)] * 3 + [(0, inputs)])
        rhs = jnp.pad(rhs, [(0, 0)] * 2 + [(0, inputs), (0, outputs)])
    out = jax.lax.conv_general_dilated(
        lhs, rhs, **windows, dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=jnp.int32
    )[..., :features]  # fmt: skip
    return from_last(out[:, 0] if flat else out, numbers.out_spec)
