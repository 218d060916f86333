"""Parameters made smaller: pytrees in, pytrees with fewer or compressed arrays out."""

from jaxaccel.transforms.params.channels.remove import Removed, remove_channels
from jaxaccel.transforms.params.load import load_params as load
from jaxaccel.transforms.params.low_rank import low_rank, spectra
from jaxaccel.transforms.params.multiply_adds import count_multiply_adds
from jaxaccel.transforms.params.prune import masked, prune
from jaxaccel.transforms.params.quantize import dequantize, quantize
from jaxaccel.transforms.params.save import save_params as save
from jaxaccel.transforms.params.share import share
from jaxaccel.transforms.params.trainable import trainable, with_trained

__all__ = [
    "Removed",
    "count_multiply_adds",
    "dequantize",
    "load",
    "low_rank",
    "masked",
    "prune",
    "quantize",
    "remove_channels",
    "save",
    "share",
    "spectra",
    "trainable",
    "with_trained",
]
