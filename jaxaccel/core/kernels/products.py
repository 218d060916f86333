"""Matrix products by oneDNN, with the derivatives, the batching and the places of `jax.lax.dot_general`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.interpret.bilinear import bilinear
from jaxaccel.core.interpret.foreign_call import match_varying, tell_devices
from jaxaccel.core.kernels.convolution import DTYPES, are_supported
from jaxaccel.core.kernels.partition import call_product
from jaxaccel.core.kernels.window import Params


def supports_product(params: Params, lhs: Any, rhs: Any, dtype: Any = jnp.float32) -> bool:
    """Tells whether a kernel computes this matrix product on this processor.

    Args:
      params: of `jax.lax.dot_general_p`.
      lhs: the left operand, or its shape and dtype: float32 or bfloat16.
      rhs: the right one.
      dtype: what the operands are multiplied in: float32 or bfloat16.
    """
    (summed, _), _ = params["dimension_numbers"]
    sizes = (*lhs.shape, *rhs.shape)
    is_known = all(isinstance(n, int) and n > 0 for n in sizes)
    return are_supported(lhs, rhs, dtype=dtype) and is_known and len(summed) > 0


def multiply(params: Params, lhs: jax.Array, rhs: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Computes ``dot_general`` by oneDNN on a CPU, and so its gradients.

    Where there is no kernel (`supports_product`), on another platform too, XLA computes the same: products of operands
    that are rounded to `dtype`, summed in float32.

    Args:
      params: of `jax.lax.dot_general_p`.
      lhs: float32 or bfloat16. Axes of one role that do not lie side by side are transposed first.
      rhs: float32 or bfloat16.
      dtype: what the operands are multiplied in: float32 or bfloat16.

    Returns:
      The product, in the dtype that XLA's would have.
    """
    lhs, rhs = match_varying(tell_devices(jnp.asarray(lhs)), jnp.asarray(rhs))
    return bilinear(jax.lax.dot_general_p, params, Multiply(jnp.dtype(dtype).name), lhs, rhs)


@dataclasses.dataclass(frozen=True)
class Multiply:
    """How `bilinear` computes a matrix product, and those that its gradients are made of."""

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

        if out.dtype.name not in DTYPES or not supports_product(params, lhs, rhs, self.dtype):
            return compute_plainly(lhs, rhs)

        def call(lhs: Any, rhs: Any) -> Any:
            (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = params["dimension_numbers"]
            x, x_axes, rows = _flatten(lhs.astype(self.dtype), lhs_batch, lhs_sum, "m")
            w, w_axes, columns = _flatten(rhs.astype(self.dtype), rhs_batch, rhs_sum, "n")
            batch = [math.prod(lhs.shape[a] for a in lhs_batch)] if lhs_batch else []
            shape = (*batch, math.prod(rows), math.prod(columns))
            flat = call_product(x_axes, w_axes, jax.ShapeDtypeStruct(shape, out.dtype), x, w)
            return flat.reshape(out.shape)

        return jax.lax.platform_dependent(lhs, rhs, cpu=call, default=compute_plainly)

    def transposed(self, cotangent: int) -> "Multiply":
        """Gradients are computed the same way."""
        return self


def _flatten(
    x: jax.Array, batch: Sequence[int], summed: Sequence[int], name: str
) -> tuple[jax.Array, str, list[int]]:
    """`x` with one axis for each role, what they are (``bmk``, ``bkm``), and the sizes of those that stay."""
    free = [axis for axis in range(x.ndim) if axis not in (*batch, *summed)]
    roles = {"b": list(batch), name: free, "k": list(summed)}
    present = [role for role in roles if role != "b" or batch]
    # In the order in which the roles lie in memory, so that nothing moves where each is in one piece.
    order = sorted(present, key=lambda role: roles[role] or [x.ndim])
    axes = [axis for role in order for axis in roles[role]]
    sizes = [math.prod(x.shape[axis] for axis in roles[role]) for role in order]
    return jnp.transpose(x, axes).reshape(sizes), "".join(order), [x.shape[axis] for axis in free]
