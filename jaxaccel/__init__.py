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
    from jaxaccel.data import open_source
    from jaxaccel.errors import UserError
    from jaxaccel.optim import Optimizer, Schedule
    from jaxaccel.parallel import MeshShape
    from jaxaccel.recipe import Data, Recipe, load_recipe
    from jaxaccel.tasks import ImageClassification, Task
    from jaxaccel.train import TrainResult, train

_HOMES = {
    "Data": "recipe",
    "ImageClassification": "tasks",
    "MeshShape": "parallel",
    "Optimizer": "optim",
    "Recipe": "recipe",
    "Schedule": "optim",
    "Task": "tasks",
    "TrainResult": "train",
    "UserError": "errors",
    "load_recipe": "recipe",
    "open_source": "data",
    "train": "train",
}
_MODULES = ("augment", "models")

__all__ = [
    "Data",
    "ImageClassification",
    "MeshShape",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Task",
    "TrainResult",
    "UserError",
    "augment",
    "load_recipe",
    "models",
    "open_source",
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
