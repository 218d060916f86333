"""Kernels that XLA:CPU lacks: oneDNN's, where the package jaxaccel-onednn is installed."""

from jaxaccel.core.kernels.convolution import convolve, supports
from jaxaccel.core.kernels.integers import Epilogue, convolve_integers, supports_integers
from jaxaccel.core.kernels.library import (
    check_program,
    describe,
    find_isa,
    is_available,
    left_out,
    why_unavailable,
)
from jaxaccel.core.kernels.products import multiply, supports_product

__all__ = [
    "Epilogue",
    "check_program",
    "convolve",
    "convolve_integers",
    "describe",
    "find_isa",
    "is_available",
    "left_out",
    "multiply",
    "supports",
    "supports_integers",
    "supports_product",
    "why_unavailable",
]
