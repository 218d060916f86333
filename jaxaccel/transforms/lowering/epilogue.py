"""What follows a convolution and can be computed with it: scales, a bias, a residual sum, ReLU, rounding to integers.

Computed one by one, each of these reads and writes the whole result. A kernel that knows them writes it once, and where
they end in int8 no sum of 32 bits touches memory.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.interpret import Fused, Link, Operand, Product, Program

Affine = tuple[str, Operand]
"""``mul`` or ``add``, and a number for all values or one for each channel."""


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """``round((product * scale + bias + residual, within low and high) * steps)``; each part may be missing."""

    affine: tuple[Affine, ...] = ()
    """The scale and the bias, as the program has them, in its order."""
    residual: Operand | None = None
    """What is added: float32, or int8 times a number."""
    low: float = -math.inf
    high: float = math.inf
    steps: Operand | None = None
    """The number that values are multiplied by before they are rounded: one over the scale of the integers."""
    rounded: bool = False
    """Whether the result is int8, saturated within ±127."""

    @property
    def is_bounded(self) -> bool:
        """Whether it has a bound."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def operands(self) -> tuple[Any, ...]:
        """The variables and numbers that it reads, in the order of `evaluate_operands`."""
        residual = _list_atoms(self.residual)
        steps = () if self.steps is None else (self.steps.atom,)
        return (*(x.atom for _, x in self.affine), *residual, *steps)


def _list_atoms(residual: Operand | None) -> tuple[Any, ...]:
    if residual is None:
        return ()
    return (residual.atom,) if residual.integers is None else (residual.integers, residual.step)


@dataclasses.dataclass(frozen=True)
class _Reading(Epilogue):
    """An epilogue as far as it has been read."""

    stage: Literal["values", "steps", "sum", "bits", "done"] = "values"
    """Where in `numerics.to_integers` it is."""
    least: float = -math.inf
    """The bounds behind `steps`."""
    largest: float = math.inf

    @property
    def is_complete(self) -> bool:
        """Whether it does not end in the midst of rounding."""
        return self.stage in ("values", "done")


@dataclasses.dataclass(frozen=True)
class Values:
    """The values of an epilogue."""

    scale: jax.Array | None
    """(C,) or () float32."""
    bias: jax.Array | None
    """(C,) or () float32."""
    residual: jax.Array | None
    """Of the shape of the result: float32, or int8 in steps of `residual_step`."""
    residual_step: jax.Array | None
    """() float32."""
    steps: jax.Array | None
    """() float32."""


def read_epilogue(links: Sequence[Link], channels: int) -> tuple[Epilogue, int]:
    """Reads as much of a chain as one kernel computes: the epilogue, and how many links it has.

    Args:
      links: what follows a product.
      channels: the axis of the channels in the result.
    """
    found: tuple[Epilogue, int] = (Epilogue(), 0)
    now: _Reading | None = _Reading()
    for count, link in enumerate(links, start=1):
        now = _add(now, link, channels)
        if now is None:
            break
        whole = count == len(links) or links[count].number != link.number
        if whole and now.is_complete:
            found = now, count
        if now.rounded:
            break
    return found


def evaluate_operands(epilogue: Epilogue, values: Sequence[jax.Array]) -> Values:
    """Joins the values of an epilogue's operands to one scale, one bias and one step."""
    scale: Any = None
    bias: Any = None
    rest = list(values)
    for name, _ in epilogue.affine:
        x = jnp.asarray(rest.pop(0), jnp.float32)
        x = x.reshape(()) if x.size == 1 else x.reshape(-1)
        if name == "mul":
            scale, bias = x if scale is None else scale * x, None if bias is None else bias * x
        else:
            bias = x if bias is None else bias + x
    residual = None if epilogue.residual is None else rest.pop(0)
    steps: list[Any] = [None, None]
    for k, is_there in enumerate(
        (residual is not None and residual.dtype == jnp.int8, epilogue.steps is not None)
    ):
        if is_there:
            steps[k] = jnp.asarray(rest.pop(0), jnp.float32).reshape(())
    return Values(scale, bias, residual, *steps)


Choose = Callable[[Product, Epilogue], bool]
"""Whether a kernel is to compute a product with what follows it."""


def find_chains(program: Program, wanted: Choose, rule: Callable[..., Any]) -> list[Fused]:
    """Finds the convolutions of a program that are to be computed with what follows them.

    Args:
      program: the equations of one body.
      wanted: asked of each, with the longest epilogue that it has.
      rule: ``rule(epilogue, site, reference, *operands)`` computes one.
    """
    found: list[Fused] = []
    taken: set[int] = set()
    for product in program.products():
        if product.primitive != "conv_general_dilated":
            continue
        links = program.follow(product, taken)
        epilogue, count = read_epilogue(links, product.params["dimension_numbers"].out_spec[1])
        if count == 0 or not wanted(product, epilogue):
            continue
        members = frozenset((product.number, *(link.number for link in links[:count])))
        taken |= members
        operands = (*program.operands_of(product.number)[:2], *epilogue.operands)
        found.append(Fused(product.number, members, links[count - 1].number, operands, _Rule(rule, epilogue)))
    return found


@dataclasses.dataclass(frozen=True)
class _Rule:
    rule: Callable[..., Any]
    epilogue: Epilogue

    def __call__(self, site: Any, reference: Callable[..., Any], *operands: Any) -> Any:
        return self.rule(self.epilogue, site, reference, *operands)


def _add(now: _Reading, link: Link, channels: int) -> _Reading | None:
    """The epilogue with one operation more; None where it cannot have that."""
    rule = _RULES.get(link.name)
    return None if rule is None else rule(now, link, channels)


def _convert(now: _Reading, link: Link, channels: int) -> _Reading | None:
    if now.stage == "bits":
        rounded = link.output.dtype == jnp.int8
        return dataclasses.replace(now, stage="done", rounded=True) if rounded else None
    return now if link.output.dtype == jnp.float32 and now.stage == "values" else None


def _multiply(now: _Reading, link: Link, channels: int) -> _Reading | None:
    (other,) = link.others
    if now.stage != "values":
        return None
    if now.residual is None and not now.is_bounded and _is_small(other, link, channels):
        return dataclasses.replace(now, affine=(*now.affine, ("mul", other)))
    if math.prod(other.shape) == 1:
        return dataclasses.replace(now, stage="steps", steps=other)
    return None


def _sum(now: _Reading, link: Link, channels: int) -> _Reading | None:
    (other,) = link.others
    if other.number == numerics.MAGIC:
        return _begin_rounding(now)
    if now.stage != "values" or now.is_bounded:
        return None
    if now.residual is None and _is_small(other, link, channels):
        return dataclasses.replace(now, affine=(*now.affine, ("add", other)))
    same = other.shape == link.output.shape and other.axes == tuple(range(link.output.ndim))
    if now.residual is None and same and other.atom.aval.dtype == jnp.float32:
        return dataclasses.replace(now, residual=other)
    return None


def _begin_rounding(now: _Reading) -> _Reading | None:
    """Adding the constant rounds what is within the range of the integers (`numerics.to_integers`)."""
    low, high = (now.low, now.high) if now.stage == "values" else (now.least, now.largest)
    top = numerics.qmax(8)
    fits = now.stage in ("values", "steps") and low >= -top and high <= top
    return dataclasses.replace(now, stage="sum") if fits else None


def _bound(now: _Reading, link: Link, channels: int) -> _Reading | None:
    numbers = [other.number for other in link.others]
    if None in numbers or now.stage not in ("values", "steps"):
        return None
    low, high = {
        "max": (numbers[0], math.inf),
        "min": (-math.inf, numbers[0]),
        "clamp": (numbers[0], numbers[-1]),
    }[link.name]
    if link.name == "clamp" and link.position != 1:
        return None
    names = ("low", "high") if now.stage == "values" else ("least", "largest")
    before = [getattr(now, name) for name in names]
    if max(before[0], low) > min(before[1], high):
        return None
    return dataclasses.replace(
        now, **dict(zip(names, (max(before[0], low), min(before[1], high)), strict=True))
    )


def _read_bits(now: _Reading, link: Link, channels: int) -> _Reading | None:
    return (
        dataclasses.replace(now, stage="bits")
        if now.stage == "sum" and link.output.dtype == jnp.int32
        else None
    )


_RULES: Mapping[str, Callable[[_Reading, Link, int], _Reading | None]] = {
    "copy": lambda now, link, channels: now,
    "convert_element_type": _convert,
    "mul": _multiply,
    "add": _sum,
    "add_any": _sum,
    "max": _bound,
    "min": _bound,
    "clamp": _bound,
    "bitcast_convert_type": _read_bits,
}


def _is_small(other: Operand, link: Link, channels: int) -> bool:
    """Whether it is a number, or one for each channel."""
    if other.atom.aval.dtype not in (jnp.float32, jnp.int32) or len(other.axes) != len(other.shape):
        return False
    return all(n == 1 or axis == channels for n, axis in zip(other.shape, other.axes, strict=True))
