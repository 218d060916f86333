"""Parameters made smaller: pytrees in, pytrees with fewer or compressed arrays out."""

from jaxaccel.compress.channels import Removed, remove_channels
from jaxaccel.compress.low_rank import low_rank, spectra
from jaxaccel.compress.pack import pack
from jaxaccel.compress.prune import masked, prune
from jaxaccel.compress.quantize import dequantize, quantize
from jaxaccel.compress.share import share
from jaxaccel.compress.trainable import trainable, with_trained
from jaxaccel.compress.unpack import unpack
from jaxaccel.compress.work import multiply_adds

__all__ = [
    "Removed",
    "dequantize",
    "low_rank",
    "masked",
    "multiply_adds",
    "pack",
    "prune",
    "quantize",
    "remove_channels",
    "share",
    "spectra",
    "trainable",
    "unpack",
    "with_trained",
]
