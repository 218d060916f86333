"""Truncated singular values, fine-tune, int8: fewer operations in the same layers.

Each convolution becomes two thinner ones (Zhang et al. 2015, arXiv:1505.06798; Jaderberg et al. 2014, arXiv:1405.3866),
at ranks that lose least over the whole network.
"""

from jaxaccel.compression import FineTune, Fold, LowRank, Pipeline, Quantize


def pipeline() -> Pipeline:
    """Half the multiply-adds, then quantized."""
    return Pipeline(
        {
            "low_rank": LowRank(),
            "fine_tune": FineTune(epochs=2, rate=0.2),
            "fold": Fold(),
            "int8": Quantize(),
        }
    )
