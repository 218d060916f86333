"""The way from a trained model to a smaller one, in steps, each with its receipt: ``python -m jaxaccel.compress``."""

from jaxaccel.compression.loop import CompressResult, compress
from jaxaccel.compression.pipeline import Pipeline, load_pipeline
from jaxaccel.compression.step import Step
from jaxaccel.compression.steps import (
    Fold,
    LowRank,
    Prune,
    Quantize,
    RemoveChannels,
    Share,
)
from jaxaccel.compression.training_steps import FineTune, Student

__all__ = [
    "CompressResult",
    "FineTune",
    "Fold",
    "LowRank",
    "Pipeline",
    "Prune",
    "Quantize",
    "RemoveChannels",
    "Share",
    "Step",
    "Student",
    "compress",
    "load_pipeline",
]
