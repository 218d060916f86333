"""Compressed arrays that stand for dense ones in a program."""

import jaxaccel.core.arrays.quant_layout  # noqa: F401  registers the rules of QuantArray
from jaxaccel.core.arrays.codebook import CodebookArray
from jaxaccel.core.arrays.low_rank import LowRankArray
from jaxaccel.core.arrays.quant import QuantArray, expand, pack, unpack

__all__ = ["CodebookArray", "LowRankArray", "QuantArray", "expand", "pack", "unpack"]
