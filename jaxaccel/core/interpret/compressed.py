"""Array types of the interpreter: values that stand for a dense array and are none."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class Compressed(Protocol):
    """What an array type must offer to stand in for a dense array in a program."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array it stands for."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the array it stands for."""
        ...

    def materialize(self) -> jax.Array:
        """The dense array."""
        ...

    def rows(self) -> Any:
        """The same with axis 0 present in every leaf, so that a loop can take it apart row by row."""
        ...


ARRAY_RULES: dict[type, dict[str, Callable[..., Any]]] = {}
"""By array type and primitive: how a compressed array passes through, whatever the transformation."""


def register(array_type: type) -> type:
    """Makes a pytree class with the members of `Compressed` an array type of the interpreter (decorator)."""
    ARRAY_RULES.setdefault(array_type, {})
    return array_type


def array_rule(array_type: type, *primitives: str) -> Callable[[Callable], Callable]:
    """Registers a rule for `primitives` with an operand of `array_type` (decorator).

    The rule is called as ``rule(site, *operands)`` and returns the result, an array or a compressed one, or
    NotImplemented: then the operand is materialized, and that is recorded.
    """

    def add(rule: Callable) -> Callable:
        ARRAY_RULES[array_type].update(dict.fromkeys(primitives, rule))
        return rule

    return add


def is_compressed(x: Any) -> bool:
    """Whether `x` is of a registered array type."""
    return type(x) in ARRAY_RULES


def as_shape(x: Any) -> Any:
    """The shape and dtype of what a compressed `x` stands for; another one itself."""
    return jax.eval_shape(lambda x: x.materialize(), x) if is_compressed(x) else x
