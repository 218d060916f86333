"""jaxaccel makes deep-learning models faster and smaller with JAX and XLA, and proves it.

    import jaxaccel as ja

    result = ja.train(ja.load_recipe("digits"))

The names below are all there is to know at first; each is imported when it is first used, so that
``import jaxaccel`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxaccel import augment, data, models, optim
    from jaxaccel.arrays import CodebookArray, LowRankArray, QuantArray
    from jaxaccel.compress import (
        dequantize,
        low_rank,
        masked,
        multiply_adds,
        pack,
        prune,
        quantize,
        remove_channels,
        share,
        unpack,
    )
    from jaxaccel.data import open_source
    from jaxaccel.errors import UserError
    from jaxaccel.explanation import explain
    from jaxaccel.loggers import Logger
    from jaxaccel.loop import train
    from jaxaccel.optim import Optimizer, Schedule
    from jaxaccel.parallel import MeshShape
    from jaxaccel.pretrained import load_pretrained
    from jaxaccel.probe import linear_probe
    from jaxaccel.recipe import Data, Recipe
    from jaxaccel.recipe_file import load_recipe
    from jaxaccel.result import TrainResult
    from jaxaccel.route import Route, follow, load_route
    from jaxaccel.tasks import ImageClassification, Task
    from jaxaccel.trained import Trained, load
    from jaxaccel.transforms import (
        Calibration,
        Hint,
        LossScale,
        RunningRanges,
        bfloat16,
        calibrate,
        compressed,
        distill,
        fake_int8,
        features,
        float8,
        float16,
        fold,
        input_covariances,
        input_norms,
        int8,
        retarget,
    )

_HOMES = {
    "Calibration": "transforms",
    "CodebookArray": "arrays",
    "Data": "recipe",
    "Hint": "transforms",
    "ImageClassification": "tasks",
    "Logger": "loggers",
    "LossScale": "transforms",
    "LowRankArray": "arrays",
    "MeshShape": "parallel",
    "Optimizer": "optim",
    "QuantArray": "arrays",
    "Recipe": "recipe",
    "Route": "route",
    "RunningRanges": "transforms",
    "Schedule": "optim",
    "Task": "tasks",
    "TrainResult": "result",
    "Trained": "trained",
    "UserError": "errors",
    "bfloat16": "transforms",
    "calibrate": "transforms",
    "compressed": "transforms",
    "dequantize": "compress",
    "distill": "transforms",
    "explain": "explanation",
    "fake_int8": "transforms",
    "features": "transforms",
    "float16": "transforms",
    "float8": "transforms",
    "fold": "transforms",
    "follow": "route",
    "input_covariances": "transforms",
    "input_norms": "transforms",
    "int8": "transforms",
    "linear_probe": "probe",
    "load": "trained",
    "load_pretrained": "pretrained",
    "load_recipe": "recipe_file",
    "load_route": "route",
    "low_rank": "compress",
    "masked": "compress",
    "multiply_adds": "compress",
    "open_source": "data",
    "pack": "compress",
    "prune": "compress",
    "quantize": "compress",
    "remove_channels": "compress",
    "retarget": "transforms",
    "share": "compress",
    "train": "loop",
    "unpack": "compress",
}
_MODULES = ("augment", "data", "models", "optim")

__all__ = [
    "Calibration",
    "CodebookArray",
    "Data",
    "Hint",
    "ImageClassification",
    "Logger",
    "LossScale",
    "LowRankArray",
    "MeshShape",
    "Optimizer",
    "QuantArray",
    "Recipe",
    "Route",
    "RunningRanges",
    "Schedule",
    "Task",
    "TrainResult",
    "Trained",
    "UserError",
    "augment",
    "bfloat16",
    "calibrate",
    "compressed",
    "data",
    "dequantize",
    "distill",
    "explain",
    "fake_int8",
    "features",
    "float8",
    "float16",
    "fold",
    "follow",
    "input_covariances",
    "input_norms",
    "int8",
    "linear_probe",
    "load",
    "load_pretrained",
    "load_recipe",
    "load_route",
    "low_rank",
    "masked",
    "models",
    "multiply_adds",
    "open_source",
    "optim",
    "pack",
    "prune",
    "quantize",
    "remove_channels",
    "retarget",
    "share",
    "train",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxaccel.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxaccel' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxaccel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
