"""The way from a trained model to a smaller one, in steps, each with its receipt: ``python -m jaxaccel.compress``."""

from jaxaccel.route.follow import Followed, follow
from jaxaccel.route.learning import FineTune, Student
from jaxaccel.route.route import Route, load_route
from jaxaccel.route.step import Step
from jaxaccel.route.steps import (
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
