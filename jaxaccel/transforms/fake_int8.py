"""Training for quantization: float arithmetic with the rounding that `int8` will do."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.interpret import Observation, Transformation, is_compressed, transform
from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where, selects
from jaxaccel.core.platform import get_platform
from jaxaccel.core.sites import BILINEAR, GROUPED, Backend, Site
from jaxaccel.errors import UserError
from jaxaccel.transforms import int8_products
from jaxaccel.transforms.calibrate import Calibration
from jaxaccel.transforms.int8 import Activations
from jaxaccel.transforms.lowering.int8_forms import FLOAT32, Preference, choose_int8_form
from jaxaccel.transforms.params.quantize import Axes, can_quantize, quantize

PyTree = Any


@checked
def fake_int8(
    f: Callable[..., Any],
    where: Where = "**/{kernel,embedding}",
    *,
    bits: int = 8,
    channels: Axes | None = None,
    block: int | None = None,
    range: str = "absmax",
    stacked: Where | None = None,
    activations: Activations | None = None,
    calibration: Calibration | None = None,
    observe: bool = False,
    argnums: int | Sequence[int] = 0,
    strict: bool = False,
    lowering: Preference = "auto",
    backend: Backend | None = None,
) -> Callable[..., Any]:
    """`f` with the rounding of ``int8(f)`` on ``quantize(params)``, in float32 and differentiable.

    Parameters and activations are rounded to the values that their integers stand for. The derivative of rounding is
    that of the identity (straight-through), so `jax.grad` of the result trains the float parameters for what
    quantization will do to them (Jacob et al. 2018, arXiv:1712.05877, section 3). One scale for each output channel
    commutes with the factor that BatchNorm multiplies the channel by: what is trained here before BatchNorm is folded
    is what `fold` and `quantize` then make.

    Args:
      f: any JAX function.
      where: which parameters, as for `quantize`; so are `bits`, `channels`, `block`, `range` and
        `stacked`.
      activations: ``dynamic``, ``static`` (needs `calibration`) or ``none``, as for `int8`.
      calibration: activation ranges. They may be traced: their gradient is that of LSQ, so ranges can be learned.
      observe: return (result, {site: largest magnitude of its activations}), for `RunningRanges`.
      argnums: which arguments hold the parameters; `where` must match one of them all.
      strict: raise `UserError` where a product could not be reached.
      lowering: as for `int8`: products that will stay in float32 there do so here.
      backend: as for `int8`.

    Raises:
      UserError: when called, if `where` matches no parameter, or a calibrated range is missing.
    """
    activations = activations or ("static" if calibration is not None else "dynamic")
    if (activations == "static") != (calibration is not None):
        raise UserError(
            'activations="static" and calibration= go together: make one with ja.calibrate(f, ...)'
        )

    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def rule(site: Site, lhs: Any, rhs: Any) -> Any:
        weight = site.weight
        if weight is None or not selects(where, site.path or ""):
            site.record("-", str(site.inputs[0].dtype), "not quantized")
            return NotImplemented
        operands = [lhs, rhs]
        x = operands[1 - weight]
        reason = (
            _float_because(site, operands, get_platform(backend), lowering)
            if activations != "none"
            else "weight-only"
        )
        largest = None
        if all(path is not None and selects(where, path) for path in site.paths[:2]):
            reason = "two parameters"  # rounded as such already
        if observe and jnp.issubdtype(x.dtype, jnp.floating):
            largest = jnp.max(jnp.abs(x), initial=0).astype(jnp.float32)
            site.observe(largest)
        if not reason:
            operands[1 - weight] = numerics.fake_quantize(
                x, _scale(site, x, 1 - weight, calibration, largest)
            )
            if calibration is not None:
                site.replace(1 - weight, operands[1 - weight])  # as int8 does
        site.record("float32 of integers", f"int{bits}", reason)
        return site.bind(*operands)

    rules = {
        **dict.fromkeys(BILINEAR, rule),
        GROUPED: int8_products.leave_grouped,
        "gather": lambda site, *_: NotImplemented,
    }
    joined = Observation(lambda x: jnp.max(x, 0), lambda shape: jnp.zeros(shape.shape, shape.dtype))
    inner = transform(
        f, Transformation("fake_int8", rules, argnums, strict=strict, observation=joined if observe else None)
    )

    def rounded(params: PyTree) -> PyTree:
        quantized = quantize(
            params, where, bits=bits, channels=channels, block=block, range=range, stacked=stacked
        )
        return jax.tree.map(_straight_through, quantized, params, is_leaf=is_compressed)

    @functools.wraps(f)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        held = [_place(f, number, len(args), kwargs) for number in numbers]
        # Where none of them can be rounded, the first one says why.
        some = [place for place in held if can_quantize(given[place], where, stacked)] or held[:1]
        given |= {place: rounded(given[place]) for place in some}
        return inner(*(given[i] for i, _ in enumerate(args)), **{name: given[name] for name in kwargs})

    return transformed


def _place(f: Callable[..., Any], argnum: int, positional: int, kwargs: Mapping[str, Any]) -> int | str:
    """Where a call with so many arguments by position has that argument of f: its number, or its keyword."""
    number = argnum + positional if argnum < 0 else argnum
    if 0 <= number < positional:
        return number
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []
    if not 0 <= number < len(names) or names[number] not in kwargs:
        raise UserError(f"fake_int8 rounds argument {argnum} of f, which this call leaves out")
    return names[number]


def _straight_through(quantized: Any, x: Any) -> Any:
    """The value of `quantized` with the derivative of `x`."""
    if not is_compressed(quantized):
        return x
    return jax.lax.stop_gradient(quantized.materialize()) + (x - jax.lax.stop_gradient(x))


def _float_because(site: Site, operands: list[Any], platform: str, lowering: Preference) -> str:
    """Why `int8` will leave the activations of this product in float32, or nothing."""
    if site.primitive == "dot_general":
        return ""
    if site.weight == 0:
        return "quantized input"
    form, reason = choose_int8_form(site.params, operands[0], operands[1], platform, lowering)
    return reason if form == FLOAT32 else ""


def _scale(
    site: Site, x: jax.Array, operand: int, calibration: Calibration | None, seen: jax.Array | None
) -> jax.Array:
    if calibration is not None:
        largest = jnp.asarray(calibration.range_of(site.name))
        if seen is not None:  # a range that `RunningRanges` does not know yet
            largest = jnp.where(largest > 0, largest, jax.lax.stop_gradient(seen))
        return numerics.scale_of(largest)
    axes = int8_products.shared_axes(site.primitive, site.params, operand, x.ndim)
    return jax.lax.stop_gradient(numerics.scale_of(numerics.absmax(x, axes)))
