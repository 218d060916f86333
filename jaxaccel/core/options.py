"""Options that are checked wherever they are given: fields of frozen dataclasses, and arguments of functions.

The annotation of an option is its check. ``Literal`` names what may be chosen, and the marks of `annotated_types`
(``Annotated[float, Interval(ge=0, lt=1)]``) give its range. What the command line refuses Python refuses too, with the
same words.
"""

import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Interval, Le, Lt

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.errors import UserError, option

P = ParamSpec("P")
R = TypeVar("R")

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
"""A part of a whole."""
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]


class Options:
    """Base of frozen dataclasses of options, whose fields are checked against their annotations as one is made.

    A list becomes a tuple, text a path, a NumPy scalar a number of Python's, where the annotation says so.
    """

    def __post_init__(self) -> None:
        """Checks the fields, then what `check_values` checks.

        Raises:
          UserError: a value is not of its field's type, no choice of it, or out of range.
        """
        try:
            for name, annotation in annotations_of(type(self)).items():
                value = getattr(self, name)
                checked_value = check_value(name, value, annotation)
                if checked_value is not value:
                    object.__setattr__(self, name, checked_value)
            self.check_values()
        except UserError as error:
            raise error.of(type(self).__name__) from None

    def check_values(self) -> None:
        """Checks what no annotation can say: values that exclude each other, for instance.

        Raises:
          UserError: something is wrong; `jaxaccel.errors.option` marks the names of fields in the message.
        """


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Checks the options of `function` against their annotations at each call (decorator).

    An option is an argument whose annotation can be checked: numbers, choices, flags, text, and sequences of
    them. Traced values pass, and so does all whose annotation is a class of somebody else's.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        known = annotations_of(function)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if name in known and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                try:
                    bound.arguments[name] = check_value(name, value, known[name])
                except UserError as error:  # a keyword of a call, also where that is the value of a flag
                    raise UserError(f"{function.__name__}: {error}") from None
        return function(*bound.args, **bound.kwargs)

    return call


@functools.cache
def annotations_of(thing: Any) -> dict[str, Any]:
    """{name: annotation} of the fields of a dataclass, or of the arguments of a function."""
    hints = get_type_hints(thing, include_extras=True)
    if isinstance(thing, type):
        names = [field.name for field in dataclasses.fields(thing) if field.init]  # type: ignore[arg-type]
    else:
        names = list(inspect.signature(thing).parameters)
    return {name: hints[name] for name in names if name in hints}


def plain_type(annotation: Any) -> Any:
    """`annotation` without the marks of its range."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def check_value(path: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` has it.

    Args:
      path: what the option is called in messages.
      value: what was given.
      annotation: a type, with marks of its range where it has one.

    Raises:
      UserError: it is not of that type, no choice of it, or out of range.
    """
    if _is_traced(value):
        return value
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        value = check_value(path, value, inner[0])
        _check_range(path, value, inner[1:])
        return value
    if origin is Literal:
        return _choice(path, value, inner)
    if origin in (Union, types.UnionType):
        return _one_of(path, value, inner)
    if annotation in _PLAIN:
        return _PLAIN[annotation](path, value)
    if origin is tuple or (origin in _SEQUENCES and inner):
        return _sequence(path, value, inner if origin is tuple else (*inner, ...))
    if origin in (dict, Mapping) and len(inner) == 2:
        return _mapping(path, value, inner)
    if annotation is type(None):
        return _expect(path, value, value is None, "None")
    if origin is collections.abc.Callable or annotation is Callable:
        return _expect(path, value, callable(value), "a function")
    if isinstance(annotation, type) and issubclass(annotation, Options):
        name = annotation.__name__
        return _expect(path, value, isinstance(value, annotation), f"{_article(name)} {name}")
    return value


_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, list)


def _is_traced(value: Any) -> bool:
    """Whether `value` is an array of JAX, which may be traced: nothing can be known of it then."""
    return type(value).__module__.startswith(("jax", "jaxlib")) and hasattr(value, "aval")


def _expect(path: str, value: Any, holds: bool, what: str) -> Any:
    if not holds:
        raise UserError(f"{option(path)} must be {what}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _article(noun: str) -> str:
    return "an" if noun[:1] in "AEIOUaeiou" else "a"


def _choice(path: str, value: Any, known: tuple[Any, ...]) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in known):
        return value
    names = [choice if isinstance(choice, str) and choice else repr(choice) for choice in known]
    what = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    hint = suggest_nearest(value, names) if isinstance(value, str) else ""
    raise UserError(f"{option(path)} must be {what}, got {_shown(value)}{hint}")


def _one_of(path: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """`value` as the first of `kinds` that takes it."""
    failures: list[UserError] = []
    for kind in kinds:
        try:
            return check_value(path, value, kind)
        except UserError as error:
            failures.append(error)
    # What was meant is told by the kind that is no None and, of several, comes nearest: one with choices.
    meant = [f for f, kind in zip(failures, kinds, strict=True) if kind is not type(None)] or failures
    inside = [failure for failure in meant if failure.options[:1] != (path,)]
    if len(meant) == 1 or inside:  # a value inside it is wrong: its kind was right
        raise (inside or meant)[0]
    start = f"{option(path)} must be "
    kinds_told = [f.message.removeprefix(start).partition(", got ")[0] for f in meant]
    hint = next((f"; {f.message.partition('; ')[2]}" for f in meant if "; did you mean" in f.message), "")
    raise UserError(f"{start}{' or '.join(dict.fromkeys(kinds_told))}, got {_shown(value)}{hint}")


def _flag(path: str, value: Any) -> bool:
    return bool(_expect(path, value, isinstance(value, (bool, np.bool_)), "True or False"))


def _whole(path: str, value: Any) -> int:
    holds = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(_expect(path, value, holds, "a whole number"))


def _number(path: str, value: Any) -> float:
    holds = isinstance(value, (numbers.Real, np.floating)) and not isinstance(value, bool)
    _expect(path, value, holds, "a number")
    _expect(path, value, math.isfinite(value), "a finite number")
    return value if type(value) is int else float(value)


def _text(path: str, value: Any) -> str:
    return str(_expect(path, value, isinstance(value, str), "text"))


def _path(path: str, value: Any) -> Path:
    return Path(_expect(path, value, isinstance(value, (str, os.PathLike)), "a path"))


_PLAIN: Mapping[Any, Callable[[str, Any], Any]] = {
    bool: _flag,
    int: _whole,
    float: _number,
    str: _text,
    Path: _path,
}


def _sequence(path: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, (tuple, list, np.ndarray)):
        # What else can be gone through (a generator, somebody's own sequence) stays as it is.
        holds = isinstance(value, collections.abc.Iterable) and not isinstance(value, (str, bytes, Mapping))
        return _expect(path, value, holds, "a sequence")
    if len(kinds) == 2 and kinds[1] is ...:
        each = (kinds[0],) * len(value)
    else:
        _expect(path, value, len(value) == len(kinds), f"{len(kinds)} values")
        each = kinds
    found = tuple(
        check_value(f"{path}[{i}]", x, kind) for i, (x, kind) in enumerate(zip(value, each, strict=True))
    )
    return (
        value
        if isinstance(value, tuple) and all(a is b for a, b in zip(found, value, strict=True))
        else found
    )


def _mapping(path: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    _expect(path, value, isinstance(value, Mapping), "a mapping from names to values")
    if _says_nothing(kinds[1]):
        return value  # a batch, say, of which reading an image may be work that waits to be joined with more
    return {
        check_value(f"a name in {path}", k, kinds[0]): check_value(f"{path}[{k!r}]", x, kinds[1])
        for k, x in value.items()
    }


def _says_nothing(annotation: Any) -> bool:
    """Whether an annotation is a class of which `check_value` takes everything."""
    known = annotation in _PLAIN or annotation is type(None)
    return isinstance(annotation, type) and not known and not issubclass(annotation, Options)


def _check_range(path: str, value: Any, marks: tuple[Any, ...]) -> None:
    if value is None or _is_traced(value):
        return
    bounds = [bound for mark in marks for bound in _bounds(mark)]
    for mark in bounds:
        for each in value if isinstance(value, (tuple, list)) else [value]:
            if not isinstance(each, numbers.Real) or not _within(each, mark):
                raise UserError(f"{option(path)} must {_range_text(bounds)}, got {_shown(value)}")


def _bounds(mark: Any) -> list[BaseMetadata]:
    if isinstance(mark, GroupedMetadata):
        return [bound for inner in mark for bound in _bounds(inner)]
    return [mark] if isinstance(mark, (Gt, Ge, Lt, Le)) else []


def _within(value: Any, bound: Any) -> bool:
    if isinstance(bound, Gt):
        return value > bound.gt
    if isinstance(bound, Ge):
        return value >= bound.ge
    return value < bound.lt if isinstance(bound, Lt) else value <= bound.le


def _range_text(bounds: list[Any]) -> str:
    """``lie in [0, 1)``, ``be at least 1``, ``be above 0``, ``be at most 5``."""
    low = next((b for b in bounds if isinstance(b, (Gt, Ge))), None)
    high = next((b for b in bounds if isinstance(b, (Lt, Le))), None)
    if low and high:
        left = f"({low.gt:g}" if isinstance(low, Gt) else f"[{low.ge:g}"
        right = f"{high.lt:g})" if isinstance(high, Lt) else f"{high.le:g}]"
        return f"lie in {left}, {right}"
    if low:
        return f"be above {low.gt:g}" if isinstance(low, Gt) else f"be at least {low.ge:g}"
    assert high
    return f"be below {high.lt:g}" if isinstance(high, Lt) else f"be at most {high.le:g}"
