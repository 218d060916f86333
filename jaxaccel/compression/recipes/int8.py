"""Fold and quantize, without any training: a minute's work, and often enough.

BatchNorm goes into the weights; weights and activations become int8 by ranges seen on training data (Wu et al. 2020,
arXiv:2004.09602).
"""

from jaxaccel.compression import Fold, Pipeline, Quantize


def pipeline() -> Pipeline:
    """Two steps, no training."""
    return Pipeline({"fold": Fold(), "int8": Quantize()})
