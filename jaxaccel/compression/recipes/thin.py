"""Remove channels, fine-tune, int8: a thinner dense network.

Whole channels go, the least important first, wherever they are (Li et al. 2017, arXiv:1608.08710), until half the
multiply-adds are left; then what is left learns from the model that it was. Channels stay in multiples of 8, which
suit vector units.
"""

from jaxaccel.compression import FineTune, Fold, Pipeline, Quantize, RemoveChannels


def pipeline() -> Pipeline:
    """Half the multiply-adds, then quantized."""
    return Pipeline(
        {
            "channels": RemoveChannels(multiple=8),
            "fine_tune": FineTune(epochs=2, rate=0.2, teacher="origin"),
            "fold": Fold(),
            "int8": Quantize(),
        }
    )
