"""Prune, share values, pack: an order of magnitude fewer bytes at the same speed.

Han et al. 2016, Deep Compression, arXiv:1510.00149: weights are pruned little by little while training goes on, those
that are left share 2 ** bits values a layer, which are fine-tuned, and an entropy coder packs the rest.
"""

from jaxaccel.optim import Sparse
from jaxaccel.route import FineTune, Route, Share


def route() -> Route:
    """Pruned by a cubic schedule, then shared."""
    return Route(
        {
            "prune": FineTune(
                epochs=2, rate=0.2, sparse=Sparse(0.85, method="gradual", scope="erk", every=20)
            ),
            "share": Share(bits=4),
            "fine_tune": FineTune(epochs=1, rate=0.05),
        }
    )
