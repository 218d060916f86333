"""Kernels that XLA:CPU lacks: oneDNN's, where the package jaxaccel-onednn is installed."""

from jaxaccel.core.kernels.convolution import convolve, supports
from jaxaccel.core.kernels.library import check_program, find_isa, is_available, why_unavailable

__all__ = ["check_program", "convolve", "find_isa", "is_available", "supports", "why_unavailable"]
