"""Values of a recipe that are no plain numbers, and how a command line writes them."""

import types
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from jaxaccel import augment, models
from jaxaccel.calls import parse, render
from jaxaccel.packed import packed

NAMES: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module in (models, augment)
    for name in module.__all__
    if isinstance(getattr(module, name), (type, types.FunctionType)) and name not in ("chain", "example_keys")
} | {"packed": packed}
"""What a model or an augmentation may be called on the command line and in recipe.json."""

Call = Annotated[
    Callable[..., Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="CALL",
        instance_from_str=lambda words: parse(words[0], NAMES),
        is_instance=callable,
        str_from_instance=lambda function: [render(function, NAMES)],
    ),
]

Values = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="X,X,...",
        instance_from_str=lambda words: tuple(float(word) for word in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: [",".join(f"{value:g}" for value in values)],
    ),
]
