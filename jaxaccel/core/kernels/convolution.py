"""Convolutions by oneDNN, with the derivatives, the batching and the places of `jax.lax.conv_general_dilated`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.interpret.bilinear import bilinear
from jaxaccel.core.interpret.foreign_call import match_varying, tell_devices
from jaxaccel.core.kernels import library
from jaxaccel.core.kernels.integers import ORDER, Epilogue
from jaxaccel.core.kernels.library import has_fast_kernel
from jaxaccel.core.kernels.partition import call_convolution
from jaxaccel.core.kernels.window import Direction, Params, plan_convolution

DTYPES = ("float32", "bfloat16")
"""What operands are multiplied in. Sums are always float32."""


def supports(params: Params, lhs: Any, rhs: Any, dtype: Any = jnp.float32) -> bool:
    """Tells whether a kernel computes this convolution on this processor.

    Args:
      params: of `jax.lax.conv_general_dilated_p`.
      lhs: the left operand, or its shape and dtype: float32 or bfloat16.
      rhs: the right one.
      dtype: what the operands are multiplied in: float32 or bfloat16.
    """
    plan = plan_convolution(params, lhs.shape, rhs.shape) if are_supported(lhs, rhs, dtype=dtype) else None
    name = jnp.dtype(dtype).name
    return plan is not None and has_fast_kernel(params, plan, lhs.shape, rhs.shape, name, "float32")


def are_supported(*operands: Any, dtype: Any) -> bool:
    """Tells whether operands of these dtypes are multiplied in `dtype` by kernels on this processor."""
    name = jnp.dtype(dtype).name
    if not library.is_available() or name not in DTYPES:
        return False
    if name != "float32" and not library.computes_bfloat16():
        return False
    return all(jnp.dtype(x.dtype).name in DTYPES for x in operands)


def convolve(params: Params, lhs: jax.Array, rhs: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Computes ``conv_general_dilated`` by oneDNN on a CPU, and so its gradients.

    Where there is no kernel (`supports`), on another platform too, XLA computes the same: products of operands that are
    rounded to `dtype`, summed in float32.

    Args:
      params: of `jax.lax.conv_general_dilated_p`.
      lhs: float32 or bfloat16, in the layout that `params` say.
      rhs: float32 or bfloat16.
      dtype: what the operands are multiplied in: float32 or bfloat16.

    Returns:
      The convolution, in the dtype that XLA's would have.
    """
    lhs, rhs = match_varying(tell_devices(jnp.asarray(lhs)), jnp.asarray(rhs))
    return bilinear(jax.lax.conv_general_dilated_p, params, Convolve(jnp.dtype(dtype).name), lhs, rhs)


def convolve_with(params: Params, lhs: jax.Array, rhs: jax.Array, epilogue: Epilogue) -> jax.Array:
    """Computes a forward convolution of float32 and its epilogue in one call. It has no derivative.

    Args:
      params: of `jax.lax.conv_general_dilated_p`.
      lhs: float32.
      rhs: float32.
      epilogue: a bias, a residual of float32, bounds and ReLU; no scale and no divisor.
    """
    plan = plan_convolution(params, lhs.shape, rhs.shape)
    assert plan is not None and plan.direction is Direction.FORWARD
    out = jax.eval_shape(lambda a, b: jax.lax.conv_general_dilated_p.bind(a, b, **params), lhs, rhs)
    names = [name for name in ORDER if getattr(epilogue, name) is not None]
    extras = (getattr(epilogue, name) for name in names)
    arrays = (
        x if name == "addend" else jnp.asarray(x, jnp.float32).reshape(-1)
        for name, x in zip(names, extras, strict=True)
    )
    numbers = tuple(map(ORDER.index, names))
    return call_convolution(plan, out, (tell_devices(lhs), rhs, *arrays), numbers, epilogue.relu)


def is_forward(params: Params, lhs: Any, rhs: Any) -> bool:
    """Tells whether oneDNN has a convolution of these shapes, and it is no gradient of one."""
    plan = plan_convolution(params, lhs.shape, rhs.shape)
    return plan is not None and plan.direction is Direction.FORWARD


@dataclasses.dataclass(frozen=True)
class Convolve:
    """How `bilinear` computes a convolution, and those that its gradients are made of."""

    dtype: str

    @property
    def name(self) -> str:
        """What `explain` calls it."""
        return f"oneDNN {self.dtype}"

    def __call__(self, primitive: Any, params: Mapping[str, Any], lhs: Any, rhs: Any, *extra: Any) -> Any:
        """The product, by the kernel on a CPU where it supports it."""
        out = jax.eval_shape(lambda a, b: primitive.bind(a, b, **params), lhs, rhs)

        def compute_plainly(lhs: Any, rhs: Any) -> Any:
            wide = dict(params) | {"preferred_element_type": jnp.dtype(jnp.float32)}
            return primitive.bind(lhs.astype(self.dtype), rhs.astype(self.dtype), **wide).astype(out.dtype)

        if out.dtype.name not in DTYPES or not supports(params, lhs, rhs, self.dtype):
            return compute_plainly(lhs, rhs)
        plan = plan_convolution(params, lhs.shape, rhs.shape)
        assert plan is not None

        def call(lhs: Any, rhs: Any) -> Any:
            # What is reversed twice is not reversed: XLA leaves both out, if no cast stands between.
            weights = jax.lax.rev(rhs, plan.window_axes) if plan.is_reversed else rhs
            wide = jax.ShapeDtypeStruct(out.shape, jnp.float32)
            operands = lhs.astype(self.dtype), weights.astype(self.dtype)
            return call_convolution(plan, wide, operands).astype(out.dtype)

        return jax.lax.platform_dependent(lhs, rhs, cpu=call, default=compute_plainly)

    def transposed(self, cotangent: int) -> "Convolve":
        """Gradients are computed the same way."""
        return self
