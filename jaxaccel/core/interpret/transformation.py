"""What a transformation is: a table of rules by primitive, and how they are applied."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxaccel.core.interpret.chains import Fused, Program
from jaxaccel.core.paths import Where

PyTree = Any
Rule = Callable[..., Any]
"""``rule(site, *operands)`` returns the result (a list: a loop's), or NotImplemented to leave the equation as it is."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """How what `Site.observe` sends is joined over loops: by an associative reduction with an identity."""

    reduce: Callable[[PyTree], PyTree]
    """Pytree of arrays with a leading axis -> the same without it."""
    identity: Callable[[PyTree], PyTree]
    """Pytree of shapes and dtypes -> what leaves any other unchanged."""


@dataclasses.dataclass(frozen=True)
class Transformation:
    """A set of rules and how to apply them."""

    name: str
    rules: Mapping[str, Rule]
    """By primitive name."""
    argnums: int | Sequence[int] = 0
    """Which arguments hold the parameters that rules know by path."""
    arrays: bool = False
    """Whether compressed arrays among the arguments reach the rules whole."""
    strict: bool = False
    """Whether what could not be done raises."""
    primal_only: bool = False
    """The result is not differentiated: functions with a custom derivative are evaluated inline."""
    observation: Observation | None = None
    fuse: Callable[[Program], Sequence[Fused]] | None = None
    """Finds chains of a body that are computed as one, before the rules see its equations."""
    where: Mapping[str, Where] = dataclasses.field(default_factory=dict)
    """By the name of an option: the patterns it got, each of which must match a parameter."""
