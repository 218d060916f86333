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
    from jaxaccel import data, models, optim
    from jaxaccel.compression import Route, follow, load_route
    from jaxaccel.core.arrays import CodebookArray, LowRankArray, QuantArray
    from jaxaccel.data import augment, open_source
    from jaxaccel.deployment.trained import Trained, load
    from jaxaccel.distributed import MeshShape
    from jaxaccel.errors import UserError
    from jaxaccel.models.linear_probe import linear_probe
    from jaxaccel.models.pretrained import load_pretrained
    from jaxaccel.optim import Optimizer, Schedule
    from jaxaccel.tasks import ImageClassification, Task
    from jaxaccel.training.loggers import Logger
    from jaxaccel.training.loop import train
    from jaxaccel.training.recipe import Data, Recipe
    from jaxaccel.training.recipe_file import load_recipe
    from jaxaccel.training.result import TrainResult
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
    from jaxaccel.transforms.explain import explain
    from jaxaccel.transforms.params import (
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

_HOMES = {
    "Calibration": "transforms",
    "CodebookArray": "core.arrays",
    "Data": "training.recipe",
    "Hint": "transforms",
    "ImageClassification": "tasks",
    "Logger": "training.loggers",
    "LossScale": "transforms",
    "LowRankArray": "core.arrays",
    "MeshShape": "distributed",
    "Optimizer": "optim",
    "QuantArray": "core.arrays",
    "Recipe": "training.recipe",
    "Route": "compression",
    "RunningRanges": "transforms",
    "Schedule": "optim",
    "Task": "tasks",
    "TrainResult": "training.result",
    "Trained": "deployment.trained",
    "UserError": "errors",
    "bfloat16": "transforms",
    "calibrate": "transforms",
    "compressed": "transforms",
    "dequantize": "transforms.params",
    "distill": "transforms",
    "explain": "transforms.explain",
    "fake_int8": "transforms",
    "features": "transforms",
    "float16": "transforms",
    "float8": "transforms",
    "fold": "transforms",
    "follow": "compression",
    "input_covariances": "transforms",
    "input_norms": "transforms",
    "int8": "transforms",
    "linear_probe": "models.linear_probe",
    "load": "deployment.trained",
    "load_pretrained": "models.pretrained",
    "load_recipe": "training.recipe_file",
    "load_route": "compression",
    "low_rank": "transforms.params",
    "masked": "transforms.params",
    "multiply_adds": "transforms.params",
    "open_source": "data",
    "pack": "transforms.params",
    "prune": "transforms.params",
    "quantize": "transforms.params",
    "remove_channels": "transforms.params",
    "retarget": "transforms",
    "share": "transforms.params",
    "train": "training.loop",
    "unpack": "transforms.params",
}
_MODULES = {"augment": "data.augment", "data": "data", "models": "models", "optim": "optim"}

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
        return importlib.import_module(f"jaxaccel.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxaccel' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxaccel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
