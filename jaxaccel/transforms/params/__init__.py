"""Parameters made smaller: pytrees in, pytrees with fewer or compressed arrays out."""

from jaxaccel.transforms.params.channels.remove import Removed, remove_channels
from jaxaccel.transforms.params.low_rank import low_rank, spectra
from jaxaccel.transforms.params.pack import pack
from jaxaccel.transforms.params.prune import masked, prune
from jaxaccel.transforms.params.quantize import dequantize, quantize
from jaxaccel.transforms.params.share import share
from jaxaccel.transforms.params.trainable import trainable, with_trained
from jaxaccel.transforms.params.unpack import unpack
from jaxaccel.transforms.params.work import multiply_adds

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
