"""Functions on quantized parameters: products of integers where it pays, scales where it does not."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from jaxaccel.core import numerics
from jaxaccel.core.arrays import QuantArray, expand
from jaxaccel.core.interpret import Transformation, is_compressed, transform
from jaxaccel.core.options import checked
from jaxaccel.core.platform import get_platform
from jaxaccel.core.sites import BILINEAR, GROUPED, Backend, Site
from jaxaccel.errors import UserError
from jaxaccel.transforms import int8_products
from jaxaccel.transforms.calibrate import Calibration
from jaxaccel.transforms.int8_training import training_rules
from jaxaccel.transforms.lowering import convolution
from jaxaccel.transforms.lowering.base import KERNEL, XLA
from jaxaccel.transforms.lowering.fused import fuse_integers
from jaxaccel.transforms.lowering.int8_forms import (
    FLOAT32,
    IntegerConvolution,
    IntegerKernel,
    IntegerProduct,
    Preference,
    choose_int8_form,
)

Activations = Literal["dynamic", "static", "none"]


@checked
def int8(
    f: Callable[..., Any],
    *,
    activations: Activations | None = None,
    calibration: Calibration | None = None,
    attention: bool = False,
    lowering: Preference = "auto",
    train: bool = False,
    key: jax.Array | None = None,
    argnums: int | Sequence[int] = 0,
    strict: bool = False,
    backend: Backend | None = None,
) -> Callable[..., Any]:
    """`f` on parameters with `QuantArray` leaves, products as int8 x int8 -> int32.

    f never sees the compressed type; the result has its signature, shapes and dtypes. Compose inside `jax.jit`. Where a
    convolution of integers is known to be slower than float32 on the backend, it is lowered to another form or left in
    float32, and `explain` says so. Parameters that are not quantized are left alone. Without `train` it is for
    inference: rounded activations have no derivative, and asking for one raises.

    Args:
      f: any JAX function.
      activations: ``dynamic`` quantizes the other operand of each product at the scale of its own values, one for each
        row of a matrix product or example of a convolution; ``static`` at the scale of `calibration`; ``none`` leaves
        it as it is (weight-only: fewer bytes to read). Static where a calibration is given, else dynamic.
      calibration: activation ranges from `calibrate` with the same f.
      attention: quantize products of two activations as well, dynamically.
      lowering: ``auto`` leaves convolutions in float32 that are slower as int8 on the backend; ``int8`` only those that
        integers cannot compute there.
      train: quantize both operands of every product of float parameters, forward and, with stochastic rounding of
        cotangents, backward (as AQT does; Abdolrashidi et al. 2021, arXiv:2105.03536). Needs `key`.
      key: random key for stochastic rounding; give each step its own.
      argnums: which arguments hold the parameters.
      strict: raise `UserError` where a compressed parameter had to be materialized.
      backend: ``cpu``, ``gpu`` or ``tpu``, to compile for another one than that of the mesh in context (`jax.set_mesh`)
        or, where there is none, the default one.

    Raises:
      UserError: the options contradict each other; or, when called, a calibrated range is missing; or, when
        differentiated, activations were rounded.
    """
    if train:
        if key is None:
            raise UserError("int8(train=True) rounds at random: give it a key=, another one for each step")
        rules = training_rules(key, backend)
        return transform(f, Transformation("int8", rules, argnums=argnums, strict=strict))
    activations = activations or ("static" if calibration is not None else "dynamic")
    if (activations == "static") != (calibration is not None):
        raise UserError(
            'activations="static" and calibration= go together: make one with ja.calibrate(f, ...)'
        )
    rule = _Rule(activations, calibration, attention, lowering, backend)
    rules = {**dict.fromkeys(BILINEAR, rule), GROUPED: int8_products.leave_grouped, "gather": _lookup}
    quantized = transform(f, Transformation("int8", rules, argnums=argnums, arrays=True, strict=strict))
    return fuse_integers(quantized, argnums, backend)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What becomes of a product."""

    activations: Activations
    calibration: Calibration | None
    attention: bool
    lowering: Preference
    backend: Backend | None

    @property
    def platform(self) -> str:
        """The platform that this call is compiled for."""
        return get_platform(self.backend)

    def __call__(self, site: Site, lhs: Any, rhs: Any) -> Any:
        operands = [lhs, rhs]
        quantized = [isinstance(x, QuantArray) for x in operands]
        if any(is_compressed(x) and not q for x, q in zip(operands, quantized, strict=True)):
            return NotImplemented
        if not any(quantized):
            return self._between_activations(site, lhs, rhs)
        if all(quantized):
            return self._between_parameters(site, lhs, rhs)
        side = quantized.index(True)
        w, x = operands[side], operands[1 - side]
        form, reason = self._form(site, side, w, x)
        if form == FLOAT32:
            return _dense(site, lhs, rhs, reason)
        if form == "weight-only":
            return self._weight_only(site, side, w, x)
        if form == "folded":
            x, w = int8_products.fold_scale(site.params, side, w, x)
        xq = self._quantized(site, 1 - side, x)
        if form == "blocks":
            site.record(f"{self.activations}: int8 x int8 -> int32 by blocks", _dtype(w))
            return int8_products.multiply_blocked(site.params, self._bind(site, side), side, w, xq)
        pair = (w, xq) if side == 0 else (xq, w)
        return self._product(site, form, pair[0], pair[1], f"{self.activations}: " + _lowering(form))

    def _form(self, site: Site, side: int, w: QuantArray, x: Any) -> tuple[str, str]:
        """Which lowering the product takes, and why where it is not the plain one."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return FLOAT32, f"the other operand is {x.dtype}"
        dot = site.primitive == "dot_general"
        if self.activations == "none":
            fits = (
                int8_products.can_scale_after(site.primitive, site.params, side, w) and w.zero_point is None
            )
            # The sum of integers is up to 127 times the result, and a convolution's has the dtype of its operands.
            fits = fits and (dot or x.dtype != jnp.float16)
            return ("weight-only" if fits else "float32"), "weight-only"
        if int8_products.may_overflow(site.primitive, site.params, *((w, x) if side == 0 else (x, w))):
            return FLOAT32, "its sum may exceed int32"
        if not dot and (side == 0 or w.zero_point is not None):
            return FLOAT32, "quantized input" if side == 0 else "zero points in a convolution"
        if not int8_products.can_scale_after(site.primitive, site.params, side, w):
            if dot and int8_products.is_blocked(site.params, side, w):
                return "blocks", ""
            if (
                dot
                and self.activations == "dynamic"
                and int8_products.scales_contracted_alone(site.params, side, w)
            ):
                return "folded", ""
            return FLOAT32, "its scales vary along the sum"
        if dot:
            return XLA, ""
        return choose_int8_form(site.params, x, w, self.platform, self.lowering)

    def _quantized(self, site: Site, operand: int, x: jax.Array) -> QuantArray:
        if self.calibration is None:
            return int8_products.quantize_operand(_for_inference(x), site.primitive, site.params, operand)
        largest = self.calibration.range_of(site.name)
        known = site.recall(x)
        if known is not None and (known[0] is largest or _equal(known[0], largest)):
            return known[1]
        scale = numerics.scale_of(largest)
        xq = int8_products.quantize_operand(_for_inference(x), site.primitive, site.params, operand, scale)
        # Whatever else reads these activations then reads the same integers: another product takes them as they are,
        # and for a residual path no float copy is written.
        dense = xq.materialize()
        site.replace(operand, dense)
        site.remember(dense, (largest, xq))
        return xq

    def _product(self, site: Site, form: str, lhs: QuantArray, rhs: QuantArray, lowering: str) -> Any:
        def formed(lhs: jax.Array, rhs: jax.Array, **changed: Any) -> jax.Array:
            return convolution.convolve({**site.params, **changed}, (lhs, rhs), form)

        if site.primitive == "dot_general":
            bind = self._bind(site, site.weight)
        elif form == KERNEL:
            bind = partial(site.product, IntegerKernel())
        elif self.platform == "gpu" and form in (XLA, "space to depth"):
            bind = partial(site.product, IntegerConvolution(form))
        else:
            bind = site.bind if form == XLA else formed
        weight = rhs if site.weight in (1, None) else lhs
        site.record(lowering, _dtype(weight))
        return int8_products.multiply_integers(site.primitive, site.params, bind, lhs, rhs)

    def _bind(self, site: Site, weight: int | None) -> int8_products.Bind:
        """A matrix product of integers as the backend wants it; the operand number `weight` lies in memory ready."""
        return partial(site.product, IntegerProduct(self.platform, (weight != 0, weight != 1)))

    def _between_parameters(self, site: Site, lhs: QuantArray, rhs: QuantArray) -> Any:
        """The product of two parameters: of integers where their scales can be multiplied in after the sum."""
        form, reason = XLA, ""
        if not all(
            int8_products.can_scale_after(site.primitive, site.params, k, w) for k, w in enumerate((lhs, rhs))
        ):
            form, reason = FLOAT32, "its scales vary along the sum"
        elif int8_products.may_overflow(site.primitive, site.params, lhs, rhs):
            form, reason = FLOAT32, "its sum may exceed int32"
        elif site.primitive != "dot_general":
            form, reason = choose_int8_form(site.params, lhs, rhs, self.platform, self.lowering)
            if lhs.zero_point is not None or rhs.zero_point is not None:
                form, reason = FLOAT32, "zero points in a convolution"
        if form == FLOAT32:
            return _dense(site, lhs, rhs, reason)
        return self._product(site, form, lhs, rhs, _lowering(form))

    def _weight_only(self, site: Site, side: int, w: QuantArray, x: Any) -> Any:
        """The product with the integers themselves, scaled after: the scales are far fewer than the weights."""
        site.record("integers as " + str(x.dtype), _dtype(w), "weight-only")
        values = w.integers().astype(x.dtype)
        wide = jnp.float64 if site.output.dtype == jnp.float64 else jnp.float32
        # What an inner transformation narrowed already says itself how it sums.
        asks = site.primitive == "dot_general" and site.narrowed is None
        more = {"preferred_element_type": jnp.dtype(wide)} if asks else {}
        out = site.bind(*((values, x) if side == 0 else (x, values)), **more).astype(wide)
        scale = expand(w.scale, w.shape).astype(wide)
        return out * int8_products.align_with_output(site.primitive, site.params, side, scale, x.ndim)

    def _between_activations(self, site: Site, lhs: Any, rhs: Any) -> Any:
        floating = all(x.dtype == jnp.float32 for x in (lhs, rhs))
        wanted = self.attention and floating and site.path is None and site.primitive == "dot_general"
        overflows = wanted and int8_products.may_overflow(site.primitive, site.params, lhs, rhs)
        if wanted and not overflows:
            pair = [
                int8_products.quantize_operand(_for_inference(x), "dot_general", site.params, k)
                for k, x in enumerate((lhs, rhs))
            ]
            return self._product(site, XLA, pair[0], pair[1], "dynamic: int8 x int8 -> int32")
        why = "no parameter is quantized" if site.path is None else "not quantized"
        why = "its sum may exceed int32" if overflows else why
        site.record("-", site.narrowed or str(site.inputs[0].dtype), why)
        return NotImplemented


def _dense(site: Site, lhs: Any, rhs: Any, reason: str) -> Any:
    """The product of what quantized operands stand for."""
    side = 1 if isinstance(rhs, QuantArray) else 0
    site.record("dequantized", str(site.inputs[side].dtype), reason)
    return site.bind(*(x.materialize() if isinstance(x, QuantArray) else x for x in (lhs, rhs)))


@jax.custom_jvp
def _for_inference(x: jax.Array) -> jax.Array:
    """`x`, which must not be differentiated: behind it is a rounding whose derivative is 0."""
    return x


@_for_inference.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise UserError(
        "int8 rounds activations, which has no derivative: train with ja.fake_int8(f) or ja.int8(f, train=True,"
        " key=...); for int8 products in a gradient, transform the gradient: ja.int8(jax.grad(f, argnums=1))"
    )


def _lookup(site: Site, x: Any, *indices: Any) -> Any:
    """Rows of an embedding; the array's own rule does it."""
    if isinstance(x, QuantArray):
        site.record("rows of integers, scaled after", _dtype(x))
    return NotImplemented


def _equal(a: Any, b: Any) -> bool:
    """Whether two ranges are known now, and equal."""
    traced = isinstance(a, core.Tracer) or isinstance(b, core.Tracer)
    return not traced and bool(np.array_equal(a, b))


def _dtype(w: QuantArray) -> str:
    return f"int{w.bits}"


def _lowering(form: str) -> str:
    return "int8 x int8 -> int32" + (
        f" as {form}" if form in convolution.FORMS else f" by {form}" if form == KERNEL else ""
    )
