"""The package jaxaccel-onednn: whether it is there, and its calls made known to XLA."""

import functools
import importlib

import jax

from jaxaccel.errors import UserError

CONVOLUTION = "jaxaccel_onednn_convolution"
PRODUCT = "jaxaccel_onednn_product"
CALLS = (CONVOLUTION, PRODUCT)
"""What programs name the calls."""
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
    if missing := [name for name in CALLS if name not in handlers]:
        return "", f"jaxaccel-onednn lacks {', '.join(missing)}: {TO_DO}"
    for name, capsule in handlers.items():
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return isa, ""


def is_available() -> bool:
    """Tells whether the kernels can be called on a CPU, and makes them known to XLA."""
    return not _register()[1]


def why_unavailable() -> str:
    """Says in a line why the kernels cannot be called, and what to do; empty where they can."""
    return _register()[1]


def find_isa() -> str:
    """Names the instructions that oneDNN uses, such as ``AVX512_CORE_AMX``; empty where it is not available."""
    return _register()[0]


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
