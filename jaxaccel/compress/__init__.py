"""Parameters made smaller: pytrees in, pytrees with compressed arrays out."""

from jaxaccel.compress.quantize import dequantize, quantize

__all__ = ["dequantize", "quantize"]
