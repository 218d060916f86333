"""Dataclasses of options as plain values for JSON files, and back, by the types of their fields.

A missing field takes its default, an unknown one is an error that names it. An object whose class is not just the one
that its field declares carries it as ``"class"``; no field can have that name, nor ``"import"``, which marks a function
where its field declares none.
"""

import collections.abc
import dataclasses
import enum
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin

import numpy as np

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.errors import UserError


class Write(Protocol):
    """How functions and classes become text, and what is told of what could not be read again."""

    def function(self, function: Callable[..., Any]) -> str:
        """The text of a function."""
        ...

    def kind(self, kind: type) -> str:
        """The text of a class."""
        ...

    def lost(self, where: str, value: Any) -> None:
        """Takes note of a value that has no plain form."""
        ...


class Read(Protocol):
    """What the texts in a file stand for."""

    def function(self, text: str) -> Callable[..., Any]:
        """The function of a text."""
        ...

    def kind(self, name: str, bases: tuple[type, ...]) -> type:
        """The class of a text, derived from one of `bases`."""
        ...


# ---- to plain values ----------------------------------------------------------------------------------------


def encode(value: Any, declared: Any, write: Write, where: str = "") -> Any:
    """`value`, of a field that was declared as `declared`, as what JSON knows."""
    declared = strip_marks(declared)
    if is_options(value) or (_is_base(declared) and isinstance(value, declared) and not vars(value)):
        hints = field_types(type(value))
        fields = {
            f.name: encode(getattr(value, f.name), hints[f.name], write, _join(where, f.name))
            for f in fields_of(type(value))
        }
        return fields if type(value) is declared else {"class": write.kind(type(value)), **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        key_type, inner_type = _arguments(declared, Mapping, 2)
        pairs = [(key, encode(x, inner_type, write, f"{where}[{key!r}]")) for key, x in value.items()]
        if all(isinstance(key, str) and key not in ("class", "import") for key in value):
            return dict(pairs)
        return [[encode(key, key_type, write, where), x] for key, x in pairs]
    if isinstance(value, (tuple, list, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        kinds = _item_types(declared, len(value))
        return [encode(x, kind, write, where) for x, kind in zip(items, kinds, strict=True)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        text = write.function(value)
        return text if _holds_function(declared) else {"import": text}
    write.lost(where, value)
    return repr(value)


# ---- and back -----------------------------------------------------------------------------------------------


def decode(value: Any, declared: Any, read: Read, where: str = "") -> Any:
    """What `encode` made `value` of.

    Raises:
      UserError: a field is unknown, or lacks and has no default, or holds what it cannot.
    """
    declared = strip_marks(declared)
    if isinstance(value, dict):
        return _decode_dict(value, declared, read, where)
    choices = [strip_marks(x) for x in get_args(declared)] if _is_union(declared) else [declared]
    if value is None and type(None) in choices:
        return None
    if isinstance(value, list):
        return _decode_list(value, choices, read, where)
    if isinstance(value, str):
        return _decode_text(value, choices, read)
    if any(_is_class(x) for x in choices):
        raise UserError(f"{where or 'it'} must hold options, got {value!r:.80}")
    if all(_takes_function(x) or x is type(None) for x in choices):
        raise UserError(f"{where or 'it'} must hold a call such as NAME(option=value), got {value!r:.80}")
    return value


def _decode_dict(value: dict[str, Any], declared: Any, read: Read, where: str) -> Any:
    choices = [strip_marks(x) for x in get_args(declared)] if _is_union(declared) else [declared]
    anything, classes = Any in choices, tuple(x for x in choices if _is_class(x))
    if set(value) == {"import"} and (anything or any(_takes_function(x) for x in choices)):
        return read.function(str(value["import"]))
    if "class" in value and (anything or classes):
        kind = read.kind(str(value["class"]), classes or (object,))
        return _decode_options({k: x for k, x in value.items() if k != "class"}, kind, read, where)
    if len(classes) == 1 and not _is_base(classes[0]):
        return _decode_options(value, classes[0], read, where)
    mappings = [x for x in choices if _is_a(x, Mapping)]
    if not mappings and Any not in choices:
        raise UserError(f"{where or 'it'} holds options, which it does not have")
    key_type, inner = _arguments(mappings[0] if mappings else Any, Mapping, 2)
    return {
        decode(key, key_type, read, where): decode(x, inner, read, f"{where}[{key!r}]")
        for key, x in value.items()
    }


def _decode_options(value: dict[str, Any], kind: Any, read: Read, where: str) -> Any:
    hints, fields = field_types(kind), fields_of(kind)
    known = [field.name for field in fields]
    for name in value:
        if name not in known:
            shown = name if name.isidentifier() and len(name) < 80 else f"{name!r:.80}"
            raise UserError(
                f"there is no {_join(where, shown)} in this version of jaxaccel{suggest_nearest(shown, known)}: "
                "upgrade if a newer one wrote it, or delete that line"
            )
    for field in fields:
        if field.name not in value and not has_default(field):
            raise UserError(f"{_join(where, field.name)} is missing")
    given = {name: decode(x, hints[name], read, _join(where, name)) for name, x in value.items()}
    try:
        return kind(**given)
    except UserError as error:
        raise error.under(where) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where or kind.__name__}: {error}") from error


def _decode_list(value: list[Any], choices: Sequence[Any], read: Read, where: str) -> Any:
    for kind in choices:
        if _is_a(kind, Mapping):
            key_type, inner = _arguments(kind, Mapping, 2)
            if not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
                raise UserError(f"{where} must hold pairs, got {value!r:.80}")
            return {decode(k, key_type, read, where): decode(x, inner, read, where) for k, x in value}
    kind = next((x for x in choices if _is_a(x, (Sequence, collections.abc.Set)) and x is not str), Any)
    items = [
        decode(x, inner, read, f"{where}[{i}]")
        for i, (x, inner) in enumerate(zip(value, _item_types(kind, len(value)), strict=True))
    ]
    origin = get_origin(kind) or kind
    return origin(items) if origin in (list, set, frozenset) else tuple(items)


def _decode_text(value: str, choices: Sequence[Any], read: Read) -> Any:
    literals = [option for x in choices if get_origin(x) is Literal for option in get_args(x)]
    if value in literals or str in choices or Any in choices:
        return value
    for kind in choices:
        if isinstance(kind, type) and issubclass(kind, Path):
            return Path(value)
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and value in kind.__members__:
            return kind[value]
        if kind is float and value in ("inf", "-inf", "nan"):
            return float(value)
        if _holds_function(kind):
            return read.function(value)
    return value


# ---- types --------------------------------------------------------------------------------------------------


def is_options(value: Any) -> bool:
    """Whether `value` is an object of options, and no class, function or module of a network."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and not callable(value)


def fields_of(kind: Any) -> list["dataclasses.Field[Any]"]:
    """The fields that one makes an object with; none of a class that is no dataclass."""
    return (
        [field for field in dataclasses.fields(kind) if field.init] if dataclasses.is_dataclass(kind) else []
    )


def has_default(field: "dataclasses.Field[Any]") -> bool:
    """Whether a field may be left out."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def field_types(kind: Any) -> dict[str, Any]:
    """What the fields of a dataclass are declared as, with all marks; Any where that cannot be found out."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        hints = {}
    return {f.name: hints.get(f.name, Any if isinstance(f.type, str) else f.type) for f in fields_of(kind)}


def strip_marks(declared: Any) -> Any:
    """A type without its marks."""
    while get_origin(declared) is typing.Annotated:
        declared = get_args(declared)[0]
    return declared


def _is_union(declared: Any) -> bool:
    return get_origin(declared) in (typing.Union, types.UnionType)


def _is_a(declared: Any, kinds: Any) -> bool:
    origin = get_origin(declared) or declared
    return isinstance(origin, type) and issubclass(origin, kinds)


def _is_class(declared: Any) -> bool:
    """Whether options are declared."""
    return dataclasses.is_dataclass(declared) or _is_base(declared)


def _is_base(declared: Any) -> bool:
    """Whether options of classes derived from this one are declared, such as `Task`."""
    return (
        isinstance(declared, type)
        and inspect.isabstract(declared)
        and not _is_a(declared, collections.abc.Collection)
    )


def _takes_function(declared: Any) -> bool:
    return collections.abc.Callable in (declared, get_origin(declared))


def _holds_function(declared: Any) -> bool:
    """Whether a text in this field can be nothing but a function's."""
    choices = [strip_marks(x) for x in get_args(declared)] if _is_union(declared) else [declared]
    functions = [_takes_function(x) for x in choices]
    texts = [x in (str, Any) or get_origin(x) is Literal or _is_a(x, (Path, enum.Enum)) for x in choices]
    return any(functions) and not any(texts)


def _arguments(declared: Any, kind: type, count: int) -> tuple[Any, ...]:
    """What a container is declared to hold."""
    for choice in get_args(declared) if _is_union(declared) else [declared]:
        if _is_a(strip_marks(choice), kind) and len(get_args(strip_marks(choice))) == count:
            return get_args(strip_marks(choice))
    return (Any,) * count


def _item_types(declared: Any, count: int) -> list[Any]:
    """The type of each of `count` items of a list or tuple."""
    for choice in get_args(declared) if _is_union(declared) else [declared]:
        found = get_args(strip_marks(choice))
        if not found or not _is_a(strip_marks(choice), (Sequence, collections.abc.Set)):
            continue
        if get_origin(strip_marks(choice)) is not tuple or (len(found) == 2 and found[1] is ...):
            return [found[0]] * count
        if len(found) == count:
            return list(found)
    return [Any] * count


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
