"""Convolutions of integers by oneDNN, with all that comes behind the sum in the same call."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.interpret.foreign_call import tell_devices
from jaxaccel.core.kernels import library
from jaxaccel.core.kernels.library import has_fast_kernel
from jaxaccel.core.kernels.partition import call_convolution
from jaxaccel.core.kernels.window import Direction, Params, plan_convolution

RESULTS = ("int32", "int8", "uint8", "float32", "bfloat16")
"""Dtypes of results."""


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What becomes of a sum of products of integers, in float32 and in this order. Arrays, or None for nothing.

    ``min(max(sum * scale + bias + addend, low), high)``, negative ones 0 with `relu`, times ``1 / divisor``, plus
    `output_zero`; rounded to nearest, ties to even, and saturated where the result is of integers.
    """

    scale: Any = None
    """float32, one or one a feature: that of the inputs times that of the weights."""
    bias: Any = None
    """float32, one a feature."""
    zero_point: Any = None
    """int32, one: which integer stands for 0 in the inputs, in their padding too."""
    addend: Any = None
    """A residual of the result's shape, any of `RESULTS`; its scale is 1: divide `scale` and `bias` by its own."""
    low: Any = None
    """float32, one."""
    high: Any = None
    """float32, one."""
    divisor: Any = None
    """float32, one: the scale of the result."""
    output_zero: Any = None
    """int32, one: which integer stands for 0 in the result."""
    relu: bool = False


jax.tree_util.register_dataclass(Epilogue, [f.name for f in dataclasses.fields(Epilogue)][:-1], ["relu"])
ORDER = ("scale", "bias", "zero_point", "addend", "low", "high", "divisor", "output_zero")
"""The kernel's numbers of the arrays of an epilogue."""
DTYPES = {"zero_point": jnp.int32, "output_zero": jnp.int32}


def supports_integers(params: Params, lhs: Any, rhs: Any, dtype: Any = jnp.int32) -> bool:
    """Tells whether a kernel computes this convolution of integers, exactly, on this processor.

    Args:
      params: of `jax.lax.conv_general_dilated_p`.
      lhs: the inputs, or their shape and dtype: int8 or uint8.
      rhs: the weights: int8.
      dtype: of the result, one of `RESULTS`.
    """
    if not library.computes_integers() or jnp.dtype(dtype).name not in RESULTS:
        return False
    if jnp.dtype(lhs.dtype).name not in ("int8", "uint8") or jnp.dtype(rhs.dtype).name != "int8":
        return False
    if jnp.dtype(dtype).name == "bfloat16" and not library.computes_bfloat16():
        return False
    plan = plan_convolution(params, lhs.shape, rhs.shape)
    if plan is None or plan.direction is not Direction.FORWARD:
        return False
    return has_fast_kernel(params, plan, lhs.shape, rhs.shape, jnp.dtype(lhs.dtype).name, "int32")


def convolve_integers(
    params: Params, lhs: jax.Array, rhs: jax.Array, epilogue: Epilogue | None = None, dtype: Any = jnp.int32
) -> jax.Array:
    """Computes a convolution of integers and its epilogue by oneDNN on a CPU. It has no derivative.

    Where there is no kernel (`supports_integers`), on another platform too, XLA computes the same arithmetic.

    Args:
      params: of `jax.lax.conv_general_dilated_p`.
      lhs: inputs, int8 or uint8.
      rhs: weights, int8.
      epilogue: what becomes of the sum, which is int32.
      dtype: of the result, one of `RESULTS`.
    """
    epilogue = epilogue or Epilogue()
    arrays = {name: getattr(epilogue, name) for name in ORDER if getattr(epilogue, name) is not None}
    arrays = {
        name: x if name == "addend" else jnp.asarray(x, DTYPES.get(name, jnp.float32)).reshape(-1)
        for name, x in arrays.items()
    }
    is_kernel = supports_integers(params, lhs, rhs, dtype)
    out = jax.eval_shape(functools.partial(_convolve_wide, params), lhs, rhs)
    out = jax.ShapeDtypeStruct(out.shape, jnp.dtype(dtype))

    def compute_plainly(lhs: Any, rhs: Any, *extras: Any) -> Any:
        parts: dict[str, Any] = dict(zip(arrays, extras, strict=True))
        return _finish(params, lhs, rhs, Epilogue(**parts, relu=epilogue.relu), out.dtype)

    def call(lhs: Any, rhs: Any, *extras: Any) -> Any:
        plan = plan_convolution(params, lhs.shape, rhs.shape)
        assert plan is not None
        numbers = tuple(ORDER.index(name) for name in arrays)
        return call_convolution(plan, out, (lhs, rhs, *extras), numbers, epilogue.relu)

    if not is_kernel:
        return compute_plainly(lhs, rhs, *arrays.values())

    @jax.custom_batching.custom_vmap
    def compute(*operands: Any) -> Any:
        return jax.lax.platform_dependent(*operands, cpu=call, default=compute_plainly)

    @compute.def_vmap
    def _(count: int, batched: Any, *operands: Any) -> Any:
        mapped = [x for x, is_mapped in zip(operands, batched, strict=True) if is_mapped]

        def one(row: Any) -> Any:
            rest = iter(row)
            return compute(*(next(rest) if m else x for x, m in zip(operands, batched, strict=True)))

        return jax.lax.map(one, mapped), True

    return compute(tell_devices(lhs), rhs, *arrays.values())


def _convolve_wide(params: Params, lhs: Any, rhs: Any) -> Any:
    exact = dict(params) | {"preferred_element_type": jnp.dtype(jnp.int32)}
    return jax.lax.conv_general_dilated_p.bind(lhs.astype(jnp.int32), rhs.astype(jnp.int32), **exact)


def _finish(params: Params, lhs: Any, rhs: Any, e: Epilogue, dtype: Any) -> Any:
    """The same by XLA."""
    if e.zero_point is not None:
        lhs = lhs.astype(jnp.int32) - e.zero_point
    sums = _convolve_wide(params, lhs, rhs)
    if dtype == jnp.int32 and e == Epilogue():
        return sums
    axis = params["dimension_numbers"].out_spec[1]

    def along(x: Any) -> Any:
        return x.reshape([-1 if a == axis else 1 for a in range(sums.ndim)])

    y = sums.astype(jnp.float32)
    y = y if e.scale is None else y * along(e.scale)
    y = y if e.bias is None else y + along(e.bias)
    y = y if e.addend is None else y + e.addend.astype(jnp.float32)
    y = y if e.low is None else jnp.maximum(y, e.low)
    y = y if e.high is None else jnp.minimum(y, e.high)
    y = jnp.maximum(y, 0) if e.relu else y
    y = y if e.divisor is None else y * (1 / e.divisor)
    y = y if e.output_zero is None else y + e.output_zero.astype(jnp.float32)
    if not jnp.issubdtype(dtype, jnp.integer):
        return y.astype(dtype)
    info = np.iinfo(dtype)
    return jnp.clip(jnp.round(y), info.min, info.max).astype(dtype)
