"""Compressed arrays that stand for dense ones in a program."""

import jaxaccel.core.arrays.quantized_layout  # noqa: F401  registers the rules of QuantArray
from jaxaccel.core.arrays.codebook import CodebookArray
from jaxaccel.core.arrays.low_rank import LowRankArray
from jaxaccel.core.arrays.quantized import QuantArray, expand, pack, unpack

__all__ = ["CodebookArray", "LowRankArray", "QuantArray", "expand", "pack", "unpack"]
