"""jaxaccel makes deep-learning models faster and smaller with JAX and XLA, and proves it.

    import jaxaccel as ja

    result = ja.train(ja.load_recipe("digits"))

The names below are all there is to know at first; each is imported when it is first used, so that
``import jaxaccel`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxaccel import augment, models
    from jaxaccel.arrays import QuantArray
    from jaxaccel.compress import dequantize, quantize
    from jaxaccel.data import open_source
    from jaxaccel.errors import UserError
    from jaxaccel.explanation import explain
    from jaxaccel.optim import Optimizer, Schedule
    from jaxaccel.parallel import MeshShape
    from jaxaccel.recipe import Data, Recipe, load_recipe
    from jaxaccel.result import TrainResult
    from jaxaccel.tasks import ImageClassification, Task
    from jaxaccel.train import train
    from jaxaccel.transforms import (
        Calibration,
        LossScale,
        RunningRanges,
        bfloat16,
        calibrate,
        fake_int8,
        float8,
        float16,
        fold,
        int8,
        retarget,
    )

_HOMES = {
    "Calibration": "transforms",
    "Data": "recipe",
    "ImageClassification": "tasks",
    "LossScale": "transforms",
    "MeshShape": "parallel",
    "Optimizer": "optim",
    "QuantArray": "arrays",
    "Recipe": "recipe",
    "RunningRanges": "transforms",
    "Schedule": "optim",
    "Task": "tasks",
    "TrainResult": "result",
    "UserError": "errors",
    "bfloat16": "transforms",
    "calibrate": "transforms",
    "dequantize": "compress",
    "explain": "explanation",
    "fake_int8": "transforms",
    "float16": "transforms",
    "float8": "transforms",
    "fold": "transforms",
    "int8": "transforms",
    "load_recipe": "recipe",
    "open_source": "data",
    "quantize": "compress",
    "retarget": "transforms",
    "train": "train",
}
_MODULES = ("augment", "models")

__all__ = [
    "Calibration",
    "Data",
    "ImageClassification",
    "LossScale",
    "MeshShape",
    "Optimizer",
    "QuantArray",
    "Recipe",
    "RunningRanges",
    "Schedule",
    "Task",
    "TrainResult",
    "UserError",
    "augment",
    "bfloat16",
    "calibrate",
    "dequantize",
    "explain",
    "fake_int8",
    "float8",
    "float16",
    "fold",
    "int8",
    "load_recipe",
    "models",
    "open_source",
    "quantize",
    "retarget",
    "train",
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
