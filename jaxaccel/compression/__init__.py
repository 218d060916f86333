"""The way from a trained model to a smaller one, in steps, each with its receipt: ``python -m jaxaccel.compress``."""

from jaxaccel.compression.follow import Followed, follow
from jaxaccel.compression.learning import FineTune, Student
from jaxaccel.compression.route import Route, load_route
from jaxaccel.compression.step import Step
from jaxaccel.compression.steps import (
    Fold,
    LowRank,
    Prune,
    Quantize,
    RemoveChannels,
    Share,
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
