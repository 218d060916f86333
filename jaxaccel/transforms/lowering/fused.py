"""Convolutions that oneDNN computes with what follows them, on a CPU for which they were measured to be faster."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxaccel.core import kernels, numerics
from jaxaccel.core.interpret import Fused, Product, Program, Transformation, transform, with_derivative_of
from jaxaccel.core.kernels.convolution import convolve_with, is_forward
from jaxaccel.core.kernels.library import computes_integers
from jaxaccel.core.platform import get_platform
from jaxaccel.core.sites import Backend, Site
from jaxaccel.transforms.lowering.base import KERNEL
from jaxaccel.transforms.lowering.epilogue import Epilogue, evaluate_operands, find_chains
from jaxaccel.transforms.lowering.int8_forms import has_integer_kernel


def fuse_integers(
    f: Callable[..., Any], argnums: int | Sequence[int], backend: Backend | None
) -> Callable[..., Any]:
    """`f` with convolutions of integers that oneDNN computes, each with the operations that follow it."""

    @functools.wraps(f)
    def fused(*args: Any, **kwargs: Any) -> Any:
        if get_platform(backend) != "cpu" or not computes_integers():
            return f(*args, **kwargs)
        rules = {"conv_general_dilated": lambda site, *operands: NotImplemented}
        t = Transformation("int8 kernels", rules, argnums=argnums, fuse=find_integer_chains)
        return transform(f, t)(*args, **kwargs)

    return fused


def find_integer_chains(program: Program) -> list[Fused]:
    """Finds the convolutions of integers that are computed with what follows them."""
    return find_chains(program, _is_of_integers, compute_fused)


def find_float_chains(program: Program, wanted: Callable[[Product], bool]) -> list[Fused]:
    """Finds the `wanted` convolutions of float32 that are computed with what follows them."""

    def choose(product: Product, epilogue: Epilogue) -> bool:
        floats = all(x.dtype == jnp.float32 for x in (*product.inputs, product.output))
        of_integers = epilogue.residual is not None and epilogue.residual.integers is not None
        scaled = epilogue.rounded or of_integers or any(name == "mul" for name, _ in epilogue.affine)
        fits = (
            floats and product.narrowed is None and not scaled and is_forward(product.params, *product.inputs)
        )
        return fits and wanted(product)

    return find_chains(program, choose, compute_fused)


def _is_of_integers(product: Product, epilogue: Epilogue) -> bool:
    if product.narrowed != KERNEL or any(x.dtype != jnp.int8 for x in product.inputs):
        return False
    return has_integer_kernel(product.params, *product.inputs)


def compute_fused(epilogue: Epilogue, site: Site, reference: Callable[..., Any], *operands: Any) -> jax.Array:
    """Computes a convolution with what follows it; its derivative and `jax.vmap` are those of the single operations."""
    said = ", ".join(describe(epilogue))
    site.record(f"{KERNEL} with {said}", "int8" if epilogue.rounded else str(site.output.dtype))
    kernel = custom_vmap(functools.partial(_compute, epilogue, site.params))

    @kernel.def_vmap
    def compute_many(axis_size: int, batched: Sequence[bool], *operands: Any) -> tuple[Any, bool]:
        axes = [0 if one else None for one in batched]
        return jax.vmap(reference, axes, axis_size=axis_size)(*operands), True

    return with_derivative_of(reference, kernel)(*operands)


def describe(epilogue: Epilogue) -> list[str]:
    """What is computed with the sum, in words."""
    names = [name for name, _ in epilogue.affine]
    bounds = "ReLU" if epilogue.low == 0 and math.isinf(epilogue.high) else "bounds"
    words = {
        "scale": "mul" in names, "bias": "add" in names, "residual": epilogue.residual is not None,
        bounds: epilogue.is_bounded, "rounding": epilogue.rounded,
    }  # fmt: skip
    return [word for word, is_there in words.items() if is_there]


def _compute(epilogue: Epilogue, params: Any, lhs: jax.Array, rhs: jax.Array, *operands: Any) -> jax.Array:
    values = evaluate_operands(epilogue, operands)
    outputs = rhs.shape[params["dimension_numbers"].rhs_spec[0]]
    steps = jnp.float32(1) if values.steps is None else values.steps
    relu = epilogue.low == 0
    low = None if math.isinf(epilogue.low) or relu else jnp.float32(epilogue.low)
    if epilogue.rounded and not relu:  # the kernel's own least integer is -128
        low = jnp.maximum(epilogue.low, -numerics.qmax(8) / steps)
    # A residual of integers is added as it is: all else is counted in its steps.
    unit = jnp.float32(1) if values.residual_step is None else values.residual_step
    divisor = 1 / steps if epilogue.rounded else jnp.float32(1)
    counted = values.residual_step is not None

    def count(x: Any) -> Any:
        return None if x is None else x / unit if counted else x

    joined = kernels.Epilogue(
        scale=count(jnp.float32(1) if values.scale is None and counted else values.scale),
        bias=None if values.bias is None else count(jnp.broadcast_to(values.bias, (outputs,))),
        addend=values.residual,
        low=count(low),
        high=None if math.isinf(epilogue.high) else count(jnp.float32(epilogue.high)),
        divisor=count(divisor) if epilogue.rounded or counted else None,
        relu=relu,
    )
    if lhs.dtype == jnp.int8:
        dtype = jnp.int8 if epilogue.rounded else jnp.float32
        return kernels.convolve_integers(params, lhs, rhs, joined, dtype)
    return convolve_with(params, lhs, rhs, joined)
