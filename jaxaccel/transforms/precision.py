"""Functions in less precision: matrix products and convolutions of narrow operands, all else as it was.

Products take bfloat16, float16 or float8 operands and sum in float32; their results, and with them softmax,
normalization, losses, reductions and carries of loops, stay in the dtypes that the function gives them
(Micikevicius et al. 2018, arXiv:1710.03740). Casts next to a product are fused into it by XLA. The products of the
backward pass are narrow as well, whether `jax.grad` is applied to the result or the result is made of a gradient.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.interpret import Transformation, transform
from jaxaccel.core.kernels import convolution as kernels
from jaxaccel.core.kernels.library import has_bfloat16_units
from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where, selects
from jaxaccel.core.platform import get_capability, get_platform
from jaxaccel.core.sites import BILINEAR, CALL, GROUPED, Backend, Site
from jaxaccel.errors import UserError
from jaxaccel.transforms.lowering import attention
from jaxaccel.transforms.lowering.base import KERNEL
from jaxaccel.transforms.lowering.matmul import is_vector, multiply_flat, multiply_narrow

OLDEST_WITH_UNITS: Mapping[str, tuple[int, int]] = {"float16": (7, 0), "bfloat16": (8, 0), "float8": (8, 9)}
"""Compute capability of the first GPUs with units for products of such numbers."""


@checked
def bfloat16(
    f: Callable[..., Any],
    *,
    keep: Where = (),
    lowering: Literal["auto", "bfloat16"] = "auto",
    argnums: int | Sequence[int] = 0,
    strict: bool = False,
    backend: Backend | None = None,
) -> Callable[..., Any]:
    """`f` with matrix products and convolutions of bfloat16 operands, summed in float32.

    So are grouped products (`jax.lax.ragged_dot`). Products that ask for a higher precision, of float64 or of 16 bits
    already stay as they are. GPUs and TPUs round the sums of a convolution to bfloat16 once, as they write them.

    The result has the signature, shapes and dtypes of f. Compose it with `jax.jit`, `jax.grad` and the like in any
    order; compose inside `jax.jit`, for a call that is not compiled traces f anew each time.

    Args:
      f: any JAX function.
      keep: parameters by path (``"**/head/kernel"``) whose products stay as they are.
      lowering: ``auto`` leaves in float32 what the backend computes in float32 anyway (on the CPU, convolutions and
        products with a vector; all on GPUs older than compute capability 8.0, which are fast in float16); ``bfloat16``
        rounds its operands all the same, to study what they cost in accuracy.
      argnums: which arguments hold the parameters that `keep` selects from.
      strict: raise `UserError` where a product could not be reached.
      backend: ``cpu``, ``gpu`` or ``tpu``, to compile for another one than that of the mesh in context (`jax.set_mesh`)
        or, where there is none, the default one.

    Raises:
      UserError: when called, if `keep` matches no parameter.
    """
    make = functools.partial(_Narrow, "bfloat16", insist=lowering != "auto")
    return _narrowed(f, lambda: make(platform=get_platform(backend)), keep, argnums, strict)


@checked
def float16(
    f: Callable[..., Any],
    *,
    keep: Where = (),
    lowering: Literal["auto", "float16"] = "auto",
    argnums: int | Sequence[int] = 0,
    strict: bool = False,
    backend: Backend | None = None,
) -> Callable[..., Any]:
    """`f` with matrix products and convolutions of float16 operands, summed in float32.

    Values above 65,504 overflow and gradients below 6e-8 vanish: train with `LossScale`. Arguments as of `bfloat16`.
    """
    make = functools.partial(_Narrow, "float16", insist=lowering != "auto")
    return _narrowed(f, lambda: make(platform=get_platform(backend)), keep, argnums, strict)


@checked
def float8(
    f: Callable[..., Any],
    *,
    keep: Where = (),
    argnums: int | Sequence[int] = 0,
    strict: bool = False,
    backend: Backend | None = None,
    emulate: bool = False,
) -> Callable[..., Any]:
    """`f` with matrix products of float8 operands, each at a scale of its own, summed in float32.

    Operands are e4m3 in the forward pass, cotangents e5m2 in the backward one (Micikevicius et al. 2022,
    arXiv:2209.05433). Convolutions stay as they are. Other arguments as of `bfloat16`.

    Args:
      emulate: go on where the backend has no such products, to study what they cost in accuracy.

    Raises:
      UserError: when called, if the backend has none.
    """

    def make() -> _Float8:
        platform = get_platform(backend)
        if not emulate and not _has_units("float8", platform):
            raise UserError(
                f"no float8 products on this {platform}: they need a GPU of compute capability 8.9 or newer; use"
                " bfloat16, or emulate=True to study the accuracy alone"
            )
        return _Float8(platform)

    return _narrowed(f, make, keep, argnums, strict)


def _narrowed(
    f: Callable[..., Any],
    make: "Callable[[], _Narrow | _Float8]",
    keep: Where,
    argnums: int | Sequence[int],
    strict: bool,
) -> Callable[..., Any]:
    @functools.wraps(f)
    def narrowed(*args: Any, **kwargs: Any) -> Any:
        compute = make()  # now, for the platform that this call is compiled for

        def rule(site: Site, lhs: Any, rhs: Any, *groups: Any) -> Any:
            reason = _left_alone(site, keep) or compute.refuses(site)
            if reason:
                site.record("-", site.narrowed or str(site.inputs[0].dtype), reason)
                return NotImplemented
            site.record(*compute.lowered(site))
            return site.product(compute, lhs, rhs, *groups)

        rules = dict.fromkeys((*BILINEAR, GROUPED), rule) | dict.fromkeys(
            attention.CALLS, compute.attention_rule
        )
        where = {"keep": keep} if keep else {}
        t = Transformation(compute.name, rules, argnums=argnums, strict=strict, where=where)
        return transform(f, t)(*args, **kwargs)

    return narrowed


def _left_alone(site: Site, keep: Where) -> str:
    """Why the product at `site` stays as it is, or nothing."""
    dtypes = [x.dtype for x in site.inputs[:2]]
    if site.narrowed:
        return f"is {site.narrowed} already"
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return f"is {dtypes[0]}"
    if all(jnp.finfo(dtype).bits <= 16 for dtype in dtypes):
        return f"is {dtypes[0]} already"
    if any(dtype == jnp.float64 for dtype in dtypes):
        return "float64 was asked for"
    if _asks_for_more(site.params["precision"]):
        return "asks for a higher precision"
    if site.path is not None and keep and selects(keep, site.path):
        return "kept"
    return ""


def _asks_for_more(precision: Any) -> bool:
    wanted = precision if isinstance(precision, tuple) else (precision,)
    return any(p not in (None, jax.lax.Precision.DEFAULT) for p in wanted)


@dataclasses.dataclass(frozen=True)
class _Narrow:
    """A product of operands rounded to `name`, summed in float32."""

    name: str
    platform: str
    insist: bool
    elementwise: ClassVar[bool] = True

    def refuses(self, site: Site) -> str:
        if not self.insist and not _has_units(self.name, self.platform):
            better = (
                ", but for float16" if self.name != "float16" and _has_units("float16", self.platform) else ""
            )
            return f"this GPU has no units for {self.name}{better}"
        if site.primitive == "conv_general_dilated" and self._widened(
            site.primitive, site.params, *site.inputs
        ):
            return f"XLA:CPU has no {self.name} convolutions"
        if site.primitive == GROUPED and self.platform == "cpu" and not self.insist:
            return f"XLA:CPU has no {self.name} grouped products"
        return ""

    def lowered(self, site: Site) -> tuple[str, str, str]:
        if self._has_kernel(site.primitive, site.params, *site.inputs):
            return f"{self.name} x {self.name} -> float32 by {KERNEL}", self.name, ""
        if self._widened(site.primitive, site.params, *site.inputs):
            return (
                "float32",
                "float32",
                f"XLA:CPU has no {self.name} products with a vector (vmap may make it a matrix)",
            )
        return f"{self.name} x {self.name} -> float32", self.name, ""

    def _widened(self, primitive: str, params: Mapping[str, Any], lhs: Any, rhs: Any, *groups: Any) -> bool:
        """Whether the backend would compute it in float32 whatever it is given."""
        if self.platform != "cpu" or self.insist or self._has_kernel(primitive, params, lhs, rhs):
            return False
        return (
            primitive == GROUPED
            or primitive == "conv_general_dilated"
            or is_vector(params, lhs.shape, rhs.shape)
        )

    def _has_kernel(
        self, primitive: str, params: Mapping[str, Any], lhs: Any, rhs: Any, *groups: Any
    ) -> bool:
        """Whether oneDNN has the convolution, on a processor with units for it."""
        if self.platform != "cpu" or self.name != "bfloat16" or primitive != "conv_general_dilated":
            return False
        return has_bfloat16_units() and kernels.supports(params, lhs, rhs, self.name)

    def __call__(
        self, primitive: Any, params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array, *groups: jax.Array
    ) -> jax.Array:
        dtype = params["preferred_element_type"] or jnp.result_type(lhs, rhs)
        cpu, convolution = self.platform == "cpu", primitive.name == "conv_general_dilated"
        if self._has_kernel(primitive.name, params, lhs, rhs, *groups):
            return kernels.convolve(params, lhs, rhs, self.name)
        if self._widened(primitive.name, params, lhs, rhs):
            return primitive.bind(lhs, rhs, *groups, **params)
        lhs, rhs = lhs.astype(self.name), rhs.astype(self.name)
        if cpu and groups:  # rounded, and multiplied in float32
            lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
        # Accelerators sum a convolution in float32 and round once, so a narrow result halves what is written (and cuDNN
        # has no other).
        preferred = self.name if convolution and not cpu else "float32"
        params = {**params, "preferred_element_type": jnp.dtype(preferred)}
        if cpu and primitive.name == "dot_general" and params.get("out_sharding") is None:
            return multiply_narrow(primitive, params, lhs, rhs).astype(dtype)
        return primitive.bind(lhs, rhs, *groups, **params).astype(dtype)

    def transposed(self, cotangent: int) -> "_Narrow":
        return self

    def attention_rule(self, site: Site, *operands: Any) -> Any:
        """The rule of attention: one kernel of cuDNN, or its products one by one."""
        query, key, value, *mask = operands
        capability = get_capability() or attention.OLDEST_WITH_KERNEL
        floats = all(x.dtype == jnp.float32 for x in (query, key, value))
        if self.platform != "gpu" or capability < attention.OLDEST_WITH_KERNEL or not floats:
            return NotImplemented
        causal, where = attention.CALLS[CALL + site.primitive], mask[0] if mask else None
        query, key, value = (x.astype(self.name) for x in (query, key, value))
        if attention.why_not_by_cudnn(query, key, value, where, causal=causal):
            return NotImplemented
        site.record("one kernel of cuDNN", self.name)
        return attention.attend_by_cudnn(query, key, value, where, causal=causal).astype(site.output.dtype)


@dataclasses.dataclass(frozen=True)
class _Float8:
    """A matrix product of operands scaled into the range of float8."""

    platform: str
    lhs: str = "float8_e4m3fn"
    rhs: str = "float8_e4m3fn"
    name: str = "float8"

    def refuses(self, site: Site) -> str:
        return "" if site.primitive == "dot_general" else "float8 is for matrix products alone"

    def lowered(self, site: Site) -> tuple[str, str, str]:
        return "float8 x float8 -> float32", "float8", ""

    def __call__(
        self, primitive: Any, params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array
    ) -> jax.Array:
        dtype = params["preferred_element_type"] or jnp.result_type(lhs, rhs)
        (lhs, lhs_scale), (rhs, rhs_scale) = _scaled(lhs, self.lhs), _scaled(rhs, self.rhs)
        params = {**params, "preferred_element_type": jnp.dtype("float32")}
        flat = self.platform == "gpu"
        out = multiply_flat(primitive, params, lhs, rhs) if flat else primitive.bind(lhs, rhs, **params)
        # One after the other: the product of two small scales may be 0 where the result is not.
        smaller, larger = jnp.minimum(lhs_scale, rhs_scale), jnp.maximum(lhs_scale, rhs_scale)
        return (out * smaller * larger).astype(dtype)

    def attention_rule(self, site: Site, *operands: Any) -> Any:
        """The rule of attention: its products, one by one."""
        return NotImplemented

    def transposed(self, cotangent: int) -> "_Float8":
        return dataclasses.replace(self, **{"lhs" if cotangent == 0 else "rhs": "float8_e5m2"})


def _scaled(x: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """`x` in a float8 dtype and the scalar scale that it is to be multiplied by."""
    top, x = float(jnp.finfo(dtype).max), numerics.widen(x)
    # The bound is one of the scale, not of the magnitude: TINY divided is 0, and 0 / 0 is no number.
    scale = jnp.maximum(jnp.max(jnp.abs(x), initial=0) / top, numerics.TINY)
    return jnp.clip(x / scale, -top, top).astype(dtype), scale.astype(jnp.float32)


def _has_units(name: str, platform: str) -> bool:
    """Tells whether a platform has units for products of numbers of this name. A GPU of which nothing is known has."""
    if platform != "gpu":
        return name != "float8"
    capability = get_capability()
    return capability is None or capability >= OLDEST_WITH_UNITS[name]
