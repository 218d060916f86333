"""The package jaxaccel-onednn: whether it is there, and its calls made known to XLA."""

import contextlib
import contextvars
import functools
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxaccel.core.kernels.window import Params, Plan, find_shape
from jaxaccel.errors import UserError

CONVOLUTION = "jaxaccel_onednn_convolution"
PRODUCT = "jaxaccel_onednn_product"
CALLS = (CONVOLUTION, PRODUCT)
"""What programs name the calls."""
SWITCH = "JAXACCEL_ONEDNN"
"""The variable of the environment that turns the kernels off where it is 0."""
_DTYPES = {"int8": 2, "int32": 4, "uint8": 6, "float32": 11, "bfloat16": 16}
"""XLA's numbers of dtypes."""
_left_out: contextvars.ContextVar[bool] = contextvars.ContextVar("kernels_left_out", default=False)
TO_DO = "pip install ./native, in a checkout of jaxaccel"


@functools.cache
def _register() -> tuple[str, str]:
    """Registers the calls once. (instructions that oneDNN uses, why there are none)."""
    try:
        package = importlib.import_module("jaxaccel_onednn")
    except ModuleNotFoundError:
        return "", f"jaxaccel-onednn is not installed: {TO_DO}"
    try:
        handlers = package.list_handlers()
        isa = package.find_isa()
    except (ImportError, AttributeError) as error:
        return "", str(error)
    missing = [name for name in CALLS if name not in handlers]
    if missing or not hasattr(package, "find_implementation"):
        return "", f"jaxaccel-onednn is older than jaxaccel: {TO_DO}"
    for name, capsule in handlers.items():
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return isa, ""


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Traces programs that call no kernel inside, such as those that other machines run."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def is_available() -> bool:
    """Tells whether the kernels can be called on a CPU, and makes them known to XLA."""
    return not why_unavailable()


def why_unavailable() -> str:
    """Says in a line why the kernels cannot be called, and what to do; empty where they can."""
    if _left_out.get():
        return "this program is for other machines as well"
    if os.environ.get(SWITCH, "") == "0":
        return f"{SWITCH}=0 turns them off"
    return _register()[1]


def find_isa() -> str:
    """Names the instructions that oneDNN uses, such as ``AVX512_CORE_AMX``; empty where it is not available."""
    return "" if why_unavailable() else _register()[0]


def computes_bfloat16() -> bool:
    """Tells whether oneDNN has bfloat16 on this processor: from AVX-512 on."""
    return find_isa().startswith("AVX512")


def computes_integers() -> bool:
    """Tells whether oneDNN's sums of int8 products are exact on this processor: where it has VNNI.

    Without it oneDNN halves weights, and saturates sums of two products at 16 bits.
    """
    return any(name in find_isa() for name in ("VNNI", "BF16", "FP16", "AMX"))


def describe() -> str:
    """Says in a line what is computed by kernels on this processor, or what they would give and how to get them."""
    if reason := why_unavailable():
        return f"none, which compute convolutions several times as fast as XLA. {reason}"
    dtypes = ["float32", *["bfloat16"] * computes_bfloat16(), *["int8"] * computes_integers()]
    return f"{', '.join(dtypes)} by {find_isa()}"


def has_fast_kernel(
    params: Params, plan: Plan, lhs: Sequence[Any], rhs: Sequence[int], dtype: str, result: str
) -> bool:
    """Tells whether oneDNN has more than its slow reference for a convolution on this processor.

    Args:
      params: of `jax.lax.conv_general_dilated_p`.
      plan: what to compute.
      lhs: shape of the left operand; a batch that is symbolic is asked for as one of 8.
      rhs: shape of the right one.
      dtype: of the inputs; weights are int8 where those are integers.
      result: dtype of the result.
    """
    shape = tuple(n if isinstance(n, int) else 8 for n in lhs)
    weights = "int8" if dtype in ("int8", "uint8") else dtype
    out = find_shape(params, plan, shape, rhs)
    return _has_fast_convolution(plan, ((shape, dtype), (tuple(rhs), weights), (out, result)))


@functools.cache
def _has_fast_convolution(plan: Plan, arrays: tuple[tuple[tuple[int, ...], str], ...]) -> bool:
    specs = (plan.lhs_spec, plan.rhs_spec, plan.out_spec)
    numbers = [plan.direction, plan.groups, plan.group_axis, len(plan.lhs_spec)]
    for (shape, dtype), spec in zip(arrays, specs, strict=True):
        numbers += [_DTYPES[dtype], *shape, *spec]
    package = importlib.import_module("jaxaccel_onednn")
    name = package.find_implementation([*numbers, *plan.strides, *plan.dilation, *plan.padding])
    return bool(name) and not name.startswith("ref")


def check_program(text: str | bytes) -> None:
    """Checks that the kernels which a program names are here, before XLA compiles it.

    Args:
      text: the program as StableHLO, as text or as ``jax.export.Exported.mlir_module_serialized``.

    Raises:
      UserError: it names a kernel and there is none.
    """
    content = text.encode() if isinstance(text, str) else text
    if (reason := why_unavailable()) and any(name.encode() in content for name in CALLS):
        raise UserError(f"this program calls kernels of oneDNN. {reason}")


def has_bfloat16_units() -> bool:
    """Tells whether the processor has instructions for products of bfloat16, and does not only round to it."""
    return any(part in find_isa() for part in ("BF16", "FP16", "AMX"))
