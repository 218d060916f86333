"""Prune, fine-tune, int8: few bytes, and products of integers where this device runs them faster.

Magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878) while training goes on; then BatchNorm is folded into the
weights, and weights and activations become int8 by ranges seen on training data (Wu et al. 2020, arXiv:2004.09602).
"""

from jaxaccel.compression import FineTune, Fold, Pipeline, Quantize
from jaxaccel.optim import Sparse


def pipeline() -> Pipeline:
    """Pruned by a cubic schedule, then quantized."""
    return Pipeline(
        {
            "prune": FineTune(
                epochs=2, rate=0.2, sparse=Sparse(0.8, method="gradual", scope="erk", every=20)
            ),
            "fold": Fold(),
            "int8": Quantize(),
        }
    )
