"""The way from a trained model to a smaller one, in steps, each with its receipt: ``python -m jaxaccel.compress``."""

from jaxaccel.route.follow import Followed, follow
from jaxaccel.route.route import Route, load_route
from jaxaccel.route.steps import (
    FineTune,
    Fold,
    LowRank,
    Prune,
    Quantize,
    RemoveChannels,
    Share,
    Step,
    Student,
)

__all__ = [
    "FineTune",
    "Fold",
    "Followed",
    "LowRank",
    "Prune",
    "Quantize",
    "RemoveChannels",
    "Route",
    "Share",
    "Step",
    "Student",
    "follow",
    "load_route",
]
