"""Compressed arrays that stand for dense ones in a program."""

import jaxaccel.arrays.quant_layout  # noqa: F401  registers the rules of QuantArray
from jaxaccel.arrays.codebook import CodebookArray
from jaxaccel.arrays.low_rank import LowRankArray
from jaxaccel.arrays.quant import QuantArray, expand, pack, unpack

__all__ = ["CodebookArray", "LowRankArray", "QuantArray", "expand", "pack", "unpack"]
