"""A site: one matrix product, convolution or lookup of a program, and the record of what became of it."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

Backend = Literal["cpu", "gpu", "tpu"]
BILINEAR: tuple[str, ...] = ("dot_general", "conv_general_dilated")
"""The primitives that do nearly all the arithmetic, each linear in both of its operands."""
GROUPED = "ragged_dot_general"
"""The product of rows with the matrix of their group (mixtures of experts): bilinear too, with sizes of groups."""
OPERANDS: Mapping[str, int] = {GROUPED: 3}
"""How many operands a product has, where it is more than two."""
CALL = "call:"
"""Before the name of a jitted function: a rule of that name computes a call of it as a whole, or leaves it."""
SITES: tuple[str, ...] = (*BILINEAR, GROUPED, "gather")
"""What is a site: products, and lookups of embeddings."""
LOST: tuple[str, ...] = ("materialized", "not entered")
"""Kinds of `Record` that say that narrow or compressed computation was lost, on which ``strict=True`` raises."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a rule is asked: an equation of the program, with all that may decide how to compute it."""

    name: str
    """``stages/0/conv1/kernel`` after the parameter it uses, ``dot_general[3]`` where it uses none."""
    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Any, ...]
    """Shape and dtype of each operand as the untransformed function has it."""
    output: Any
    paths: tuple[str | None, ...]
    """For each operand, the path of the parameter that it is, up to a change of layout."""
    trips: int | None
    """How often the enclosing loops run it; None where a ``while`` decides as it goes."""
    bind: Callable[..., Any]
    """Computes the primitive: ``bind(*operands, **changed_params)``."""
    product: Callable[..., Any]
    """``product(compute, lhs, rhs, *extra, **changed_params)``, as `compute` does it, with the derivatives of the
    primitive."""
    narrowed: str | None
    """What an inner transformation already made of it, or None."""
    record: Callable[..., None]
    """``record(lowering, dtype, reason="")``: what was done."""
    observe: Callable[[Any], None]
    """Sends a pytree of arrays out of the program, beside its results."""
    replace: Callable[[int, Any], None]
    """``replace(operand, value)``: what later equations read in place of that operand."""
    remember: Callable[[Any, Any], None]
    """``remember(value, fact)``: what later rules are told of that very value."""
    recall: Callable[[Any], Any]
    """``recall(value)``: the fact, or None."""
    expand: Callable[..., Any]
    """``expand(f, *operands, names=...)``: ``f(*operands)`` in its place, evaluated by the same rules. Operands may be
    compressed; `names` are what those that are parts of the site's parameter are called."""

    @property
    def weight(self) -> int | None:
        """Which operand is the parameter: the second one where both are."""
        found = [i for i, path in enumerate(self.paths[:2]) if path is not None]
        return found[-1] if found else None

    @property
    def path(self) -> str | None:
        """The path of the parameter."""
        return None if self.weight is None else self.paths[self.weight]


@dataclasses.dataclass
class Record:
    """One row of what `explain` shows."""

    name: str
    primitive: str
    path: str | None
    shapes: tuple[tuple[int, ...], ...]
    """Of the operands and of the result."""
    flops: int
    """Of one run; a multiplication and an addition are two."""
    trips: int | None
    before: str
    """Dtype that the function computes it in."""
    after: str
    lowering: str
    """What it was lowered to; ``-`` where it was left alone."""
    reason: str = ""
    kind: str = "site"
    """``site``, or what could not be done: ``materialized``, ``not entered``; or ``primal only``, where the values are
    computed as asked for, but the function's own derivative is dropped."""


@dataclasses.dataclass
class Run:
    """What one transformation did to one program."""

    transformation: str
    by_place: Mapping[tuple[Any, ...], Record]
    """By the numbers of the enclosing equations and the kind. Grows when derivatives are made later."""

    @property
    def records(self) -> list[Record]:
        """In the order of the program."""
        return [self.by_place[key] for key in sorted(self.by_place, key=lambda key: key[0])]


_runs: contextvars.ContextVar[list[Run] | None] = contextvars.ContextVar("jaxaccel_runs", default=None)


@contextlib.contextmanager
def record_runs() -> Iterator[list[Run]]:
    """Collects a `Run` for every transformation that is traced inside, the innermost first."""
    runs: list[Run] = []
    token = _runs.set(runs)
    try:
        yield runs
    finally:
        _runs.reset(token)


def publish(run: Run) -> None:
    """Hands `run` to whoever is recording."""
    runs = _runs.get()
    if runs is not None:
        runs.append(run)


def count_flops(site: Site) -> int:
    """Floating-point (or integer) operations of one run of the site, multiplications and additions."""
    out = math.prod(site.output.shape)
    if site.primitive == "dot_general":
        (contracting, _), _ = site.params["dimension_numbers"]
        return 2 * out * math.prod(site.inputs[0].shape[axis] for axis in contracting)
    if site.primitive == GROUPED:
        numbers = site.params["ragged_dot_dimension_numbers"]
        (_, contracting), (_, batch) = numbers.dot_dimension_numbers
        gone = (*contracting, *batch, *numbers.rhs_group_dimensions)
        columns = math.prod(n for axis, n in enumerate(site.inputs[1].shape) if axis not in gone)
        return 2 * math.prod(site.inputs[0].shape) * columns
    if site.primitive == "conv_general_dilated":
        rhs = site.inputs[1].shape
        features = rhs[site.params["dimension_numbers"].rhs_spec[0]]
        # A dilated input is mostly zeros, which nothing has to multiply.
        return 2 * out * math.prod(rhs) // max(features, 1) // math.prod(site.params["lhs_dilation"])
    if "attention" in site.primitive:  # two products: queries with keys, and weights with values
        return 4 * out * site.inputs[1].shape[1]
    return 0
