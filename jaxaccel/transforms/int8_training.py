"""Products of float parameters as integers, forward and backward: training in int8."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.platform import get_platform
from jaxaccel.core.sites import BILINEAR, GROUPED, Backend, Site
from jaxaccel.transforms import int8_products
from jaxaccel.transforms.lowering import convolution
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.int8_forms import FLOAT32, choose_int8_form
from jaxaccel.transforms.lowering.matmul import multiply_flat


def training_rules(key: jax.Array, backend: Backend | None = None) -> Mapping[str, Callable[..., Any]]:
    """The rules of `int8(train=True)`; `key` is that of stochastic rounding."""

    def rule(site: Site, lhs: Any, rhs: Any) -> Any:
        why, platform = "", get_platform(backend)
        if any(x.dtype != jnp.float32 for x in site.inputs):
            why = f"is {site.inputs[0].dtype}"
        elif site.path is None or site.narrowed:
            why = "multiplies no parameter"
        elif int8_products.may_overflow(site.primitive, site.params, lhs, rhs):
            why = "its sum may exceed int32"
        else:
            _, why = _choose_form(platform, site.primitive, site.params, lhs, rhs)
        if why:
            site.record("-", site.narrowed or str(site.inputs[0].dtype), why)
            return NotImplemented
        some = site.primitive != "dot_general" and platform == "gpu"
        backward = "gradients that cuDNN lacks in int8 stay in float32" if some else ""
        site.record("int8 x int8 -> int32, forward and backward", "int8", backward)
        here = jax.random.fold_in(key, zlib.crc32(site.name.encode()) & 0x7FFFFFFF)
        return site.product(_Train(platform), lhs, rhs, jax.random.key_data(here))

    return {**dict.fromkeys(BILINEAR, rule), GROUPED: int8_products.leave_grouped}


@dataclasses.dataclass(frozen=True)
class _Train:
    """A product of operands quantized as they come; the cotangent is rounded at random, so that it is unbiased.

    One whose sum may exceed int32 stays in float32: a kernel's gradient sums over all positions of all examples. So
    does one that the platform cannot compute of integers.
    """

    platform: str
    cotangent: int | None = None
    name: str = "int8"

    def __call__(
        self, primitive: Any, params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array, key: jax.Array
    ) -> jax.Array:
        form, _ = _choose_form(self.platform, primitive.name, params, lhs, rhs)
        if form == FLOAT32 or int8_products.may_overflow(primitive.name, params, lhs, rhs):
            return primitive.bind(lhs, rhs, **params)
        pair = []
        for operand, x in enumerate((lhs, rhs)):
            q = int8_products.quantize_operand(x, primitive.name, params, operand)
            if operand == self.cotangent:
                noise = jax.random.fold_in(jax.random.wrap_key_data(key), operand)
                q = dataclasses.replace(q, qvalue=_at_random(noise, x, q.scale))
            pair.append(q)

        def bind(*values: Any, **changed: Any) -> jax.Array:
            changed = {**params, **changed}
            if primitive.name != "dot_general" and form != XLA:
                return convolution.convolve(changed, values, form)
            flat = primitive.name == "dot_general" and self.platform == "gpu"
            return multiply_flat(primitive, changed, *values) if flat else primitive.bind(*values, **changed)

        dtype = params["preferred_element_type"] or lhs.dtype
        return int8_products.multiply_integers(primitive.name, params, bind, *pair).astype(dtype)

    def transposed(self, cotangent: int) -> "_Train":
        return _Train(self.platform, cotangent)


def _choose_form(
    platform: str, primitive: str, params: Mapping[str, Any], lhs: Any, rhs: Any
) -> tuple[str, str]:
    """The form of a product of integers, or `FLOAT32` and why."""
    if platform != "gpu" or primitive == "dot_general":
        return XLA, ""
    return choose_int8_form(params, lhs, rhs, platform)


def _at_random(key: jax.Array, x: jax.Array, scale: jax.Array) -> jax.Array:
    top = numerics.qmax(8)
    return jnp.clip(numerics.round_stochastic(key, x * (1 / scale)), -top, top).astype(jnp.int8)
