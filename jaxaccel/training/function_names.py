"""Values of a recipe that are no plain numbers, and how a command line writes them."""

import contextlib
import contextvars
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import tyro

from jaxaccel import augment, models
from jaxaccel.core.call_text import parse, render
from jaxaccel.errors import UserError
from jaxaccel.models.packed import packed

NO_PARTS = ("chain", "cifar_resnet", "example_keys", "linear_probe", "load_pretrained")
"""Public functions that are no model and no augmentation."""
NAMES: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module in (models, augment)
    for name in module.__all__
    if isinstance(getattr(module, name), (type, types.FunctionType)) and name not in NO_PARTS
} | {"packed": packed}
"""What a model or an augmentation may be called on the command line and in recipe.json."""

_own: contextvars.ContextVar[Callable[[], Mapping[str, Callable[..., Any]]]] = contextvars.ContextVar(
    "_own", default=dict
)


@contextlib.contextmanager
def allow_own_names(find: Callable[[], Mapping[str, Callable[..., Any]]]) -> Iterator[None]:
    """Lets words of a command line name what a recipe file defines, which goes before what jaxaccel calls so.

    Args:
      find: gives those functions and classes by name. It is called where a word names a function, and only there.
    """
    token = _own.set(find)
    try:
        yield
    finally:
        _own.reset(token)


class UnreadableCall(Exception):
    """A word that names no function, with the `UserError` that says why.

    No ValueError: tyro takes that of an item of a tuple, or of an option that may be None, for one try among several.
    """


def _read(word: str) -> Callable[..., Any]:
    try:
        return parse(word, {**NAMES, **_own.get()()})
    except UserError as error:
        raise UnreadableCall(error) from error


Call = Annotated[
    Callable[..., Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="CALL",
        instance_from_str=lambda words: _read(words[0]),
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
