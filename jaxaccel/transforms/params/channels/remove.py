"""Channels removed for good: smaller dense parameters on which the same function works."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where, check_where, path_text, selects
from jaxaccel.core.timing import time_call
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.channels.coupled import (
    Coupled,
    Flat,
    Kept,
    drop_channels,
    find_coupled,
    find_working,
    is_array,
    take_kept,
)
from jaxaccel.transforms.params.multiply_adds import count_multiply_adds

PyTree = Any
Scope = Literal["layer", "global"]
Criterion = Literal["magnitude", "taylor", "random"]
TOLERANCE = 1e-3
"""Of the largest output, by which removed and masked channels may differ in float32."""
ROUNDS = 9
"""Calls from which the latency is taken."""
FAINT = 1e-6
"""What masked channels are multiplied by where 0 has no direction: as good as nothing in float32."""


@dataclasses.dataclass(frozen=True)
class Removed:
    """What `remove_channels` leaves."""

    params: PyTree
    along: tuple[PyTree, ...]
    """The further pytrees that were given, sliced alike."""
    kept: Kept
    before: Mapping[str, int]
    """Channels by name of the coupled axes (`Coupled.name`)."""
    after: Mapping[str, int]
    fixed: Mapping[str, str]
    """Coupled axes, and weights with outputs, that had to stay whole, and why."""

    def report(self) -> str:
        """One line for each set of coupled axes, for people."""
        width = max((len(name) for name in (*self.before, *self.fixed)), default=0)
        lines = [f"{name:<{width}}  {self.before[name]:>5} -> {self.after[name]}" for name in self.before]
        return "\n".join([*lines, *(f"{name:<{width}}  whole: {why}" for name, why in self.fixed.items())])


@checked
def remove_channels(
    f: Callable[..., Any],
    params: PyTree,
    *args: Any,
    flops: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    scope: Scope = "global",
    criterion: Criterion = "magnitude",
    where: Where = "**",
    grads: PyTree = None,
    key: jax.Array | None = None,
    least: float = 0.1,
    multiple: int = 1,
    along: Sequence[PyTree] = (),
) -> Removed:
    """`params` without the least important channels, until f costs the given share of what it did.

    Which positions along which axes can only go together is read off f's program (`interpret.channels`): through
    residual additions, concatenations, normalization, depthwise and grouped convolutions, reshapes and attention
    heads, for any function. Axes whose size f itself insists on stay whole, and so do those whose size decides the
    result, as behind a LayerNorm. The result is checked: f on it equals f on parameters with the same channels set to
    0.

    Args:
      f: called as ``f(params, *args)``, in inference.
      params: its parameters and, where it has any, the statistics of BatchNorm, in one pytree of dense arrays.
      args: examples of the other arguments: arrays, or shapes, for which random numbers are taken.
      flops: the share of the multiply-adds that shall be left.
      parameters: or that of the parameters.
      latency: or that of the time of a call of f on this device, measured.
      scope: ``global`` removes the least important wherever they are; ``layer`` the same share everywhere.
      criterion: of a channel: ``magnitude``, the squares of all its weights, each weight relative to the mean of its
        array; ``taylor``, what the loss changes to first order without it, which needs `grads`; ``random`` needs `key`.
      where: only axes of which one belongs to a selected path.
      grads: gradients of the loss, a pytree like `params`; what has none (BatchNorm's statistics) may be None.
      key: of the random numbers.
      least: share of the channels that stays everywhere.
      multiple: channels are left in multiples of this, where there were.
      along: pytrees with leaves for each parameter, as an optimizer's moments, whose paths end in the parameter's.

    Raises:
      UserError: not exactly one budget is given, it cannot be reached, there is nothing to remove, or f computes
        something else with fewer channels.
    """
    budgets = {"flops": flops, "parameters": parameters, "latency": latency}
    _check(budgets, scope, criterion, grads, key, least)
    budget, share = next((name, value) for name, value in budgets.items() if value is not None)
    tree = Flat(params)
    check_where(where, tree.paths)
    axes, needed = find_coupled(f, tree, args)
    chosen = [some for some in axes if any(selects(where, path) for path, _ in some.members)]
    free, fixed = find_working(f, tree, args, chosen)
    fixed |= {path: why for path, why in needed.items() if selects(where, path) and path not in fixed}
    if not free:
        why = next(iter(fixed.values()), "no axis of its parameters is free")
        raise UserError(f"nothing of this function's parameters can be removed: {why}")
    order = _order(_scores(free, tree, criterion, grads, key), scope)

    def kept(count: int) -> Kept:
        return drop_channels([(free[i], j) for i, j in _allowed(order[:count], free, least, multiple)], tree)

    left = kept(_bisected(budget, share, len(order), _cost(budget, f, tree, args), kept))
    _verify(f, tree, args, left)
    return Removed(
        tree.cut(left), tuple(_alike(other, tree, left) for other in along), left,
        {axes.name: len(axes.sets) for axes in free}, {axes.name: _count(axes, left) for axes in free}, fixed,
    )  # fmt: skip


def _scores(
    free: Sequence[Coupled], tree: Flat, criterion: str, grads: PyTree, key: jax.Array | None
) -> list[np.ndarray]:
    """How much each channel matters, by coupled axes; their mean is 1 in each."""
    slopes = jax.tree.leaves(grads, is_leaf=lambda x: x is None) if grads is not None else []
    if grads is not None and len(slopes) != len(tree.leaves):
        raise UserError("grads must be a pytree like params, with None for what has no gradient")
    found = []
    for number, c in enumerate(free):
        if criterion == "random":
            assert key is not None
            found.append(
                np.asarray(jax.random.uniform(jax.random.fold_in(key, number), (len(c.sets),), jnp.float32))
            )
            continue
        along = {member: _along(tree, member, criterion, slopes) for member in c.members}
        raw = np.array(
            [sum(along[path, axis][position] for path, axis, position in places) for places in c.sets]
        )
        found.append(raw / max(raw.mean(), 1e-30))
    return found


def _along(tree: Flat, member: tuple[str, int], criterion: str, slopes: list[Any]) -> np.ndarray:
    """A number for each position of an axis."""
    path, axis = member
    x = np.asarray(tree.leaf(path), np.float32)
    others = tuple(i for i in range(x.ndim) if i != axis)
    if criterion == "taylor":
        slope = slopes[tree.paths.index(path)]
        return (
            np.zeros(x.shape[axis]) if slope is None else (x * np.asarray(slope, np.float32)).sum(others) ** 2
        )
    if x.ndim < 2:  # scales and statistics say little by themselves
        return np.zeros(x.shape[axis])
    energy = (x**2).sum(others)
    return energy / max(energy.mean(), 1e-30)


def _order(scores: Sequence[np.ndarray], scope: str) -> list[tuple[int, int]]:
    """(coupled axes, channel), the least important first; `layer` takes from all of them in turn."""
    ranked = []
    for i, values in enumerate(scores):
        for rank, j in enumerate(np.argsort(values, kind="stable")):
            ranked.append((rank / len(values) if scope == "layer" else values[j], i, int(j)))
    return [(i, j) for _, i, j in sorted(ranked)]


def _allowed(
    order: Sequence[tuple[int, int]], free: Sequence[Coupled], least: float, multiple: int
) -> list[tuple[int, int]]:
    """Those that go: enough stay everywhere, in multiples where there were."""
    gone: dict[int, list[int]] = {}
    for i, j in order:
        if len(free[i].sets) - len(gone.get(i, [])) > max(1, int(np.ceil(least * len(free[i].sets)))):
            gone.setdefault(i, []).append(j)
    for i, numbers in gone.items():
        size = len(free[i].sets)
        if size % multiple == 0:  # the most important of those to go stay, up to the next multiple
            del numbers[len(numbers) - (len(numbers) - size) % multiple :]
    return [(i, j) for i, numbers in gone.items() for j in numbers]


def _bisected(
    budget: str, share: float, most: int, cost: Callable[[Kept], float], kept: Callable[[int], Kept]
) -> int:
    """How many must go for `share` of the cost to be left."""
    whole = cost({})
    if (reached := cost(kept(most)) / whole) > share:
        raise UserError(
            f"{budget}={share:g} cannot be reached: with as few channels as least allows it is {reached:.2f}; lower "
            "least, select more with where, or ask for less"
        )
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(kept(middle)) / whole <= share else (middle, high)
    return high


def _cost(budget: str, f: Callable[..., Any], tree: Flat, args: Sequence[Any]) -> Callable[[Kept], float]:
    if budget == "parameters":
        return lambda kept: float(sum(np.prod(x.shape) for x in tree.shapes(kept)))
    if budget == "flops":
        return lambda kept: float(sum(count_multiply_adds(tree.call(f), tree.shapes(kept), *args).values()))
    example = _filled(args)

    def seconds(kept: Kept) -> float:
        leaves = [jnp.zeros(x.shape, x.dtype) for x in tree.shapes(kept)]
        call = jax.jit(tree.call(f)).lower(leaves, *example).compile()
        return time_call(functools.partial(call, leaves, *example), rounds=ROUNDS)

    return seconds


def _filled(args: Sequence[Any]) -> Sequence[Any]:
    """`args` with random numbers in place of shapes."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.random.normal(jax.random.key(0), x.shape, x.dtype)
        return jnp.zeros(x.shape, x.dtype)

    return jax.tree.map(leaf, tuple(args))


def _verify(f: Callable[..., Any], tree: Flat, args: Sequence[Any], kept: Kept) -> None:
    """Checks that f on what is kept equals f on parameters with zeros for what is not."""
    example, call = _filled(args), jax.jit(tree.call(f))

    def result(params: PyTree) -> list[np.ndarray]:
        leaves = [x if is_array(x) else 0.0 for x in jax.tree.leaves(params)]
        return [np.asarray(x, np.complex128) for x in jax.tree.leaves(call(leaves, *example))]

    small, masked = result(tree.cut(kept)), result(tree.masked(kept))
    if any(np.isnan(x).any() for x in masked):  # a weight that is divided by its norm, which is 0
        masked = result(tree.masked(kept, FAINT))
    if any(np.isnan(x).any() for x in masked):
        raise UserError(
            "the result cannot be checked: with channels set to 0 the function gives NaN; give arguments for which it "
            "is a number, or leave those axes out with where"
        )
    for a, b in zip(small, masked, strict=True):
        finite = np.isfinite(b)
        far = np.abs(a[finite] - b[finite]).max(initial=0) > TOLERANCE * np.abs(b[finite]).max(initial=1e-30)
        if far or not np.array_equal(a[~finite], b[~finite]):
            raise UserError(
                "the function computes something else with fewer channels than with the same ones set to 0: the number "
                "of channels enters its result; leave those axes out with where"
            )


def _alike(other: PyTree, tree: Flat, kept: Kept) -> PyTree:
    """A pytree with the leaves that belong to a parameter, by path and shape, sliced like it."""
    by_length = sorted(kept, key=len, reverse=True)

    def leaf(path: tuple[Any, ...], x: Any) -> Any:
        text = "/" + path_text(path)
        for name in by_length:
            if text.endswith("/" + name) and jnp.shape(x) == jnp.shape(tree.leaf(name)):
                return take_kept(x, kept[name])
        return x

    return jax.tree_util.tree_map_with_path(leaf, other)


def _count(axes: Coupled, kept: Kept) -> int:
    path, axis, _ = axes.sets[0][0]
    positions = kept.get(path, {}).get(axis)
    if positions is None:
        return len(axes.sets)
    left = set(positions.tolist())
    return sum(all(p != path or a != axis or at in left for p, a, at in places) for places in axes.sets)


def _check(
    budgets: Mapping[str, float | None], scope: str, criterion: str, grads: PyTree, key: Any, least: float
) -> None:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise UserError(f"remove_channels needs exactly one of {', '.join(budgets)}")
    for name, value in given.items():
        if not 0 < value < 1:
            raise UserError(f"{name} is the share that shall be left, between 0 and 1, got {value:g}")
    if scope not in ("layer", "global") or criterion not in ("magnitude", "taylor", "random"):
        raise UserError(
            f"scope must be layer or global and criterion magnitude, taylor or random, got {scope!r}, {criterion!r}"
        )
    if (criterion == "taylor" and grads is None) or (criterion == "random" and key is None):
        raise UserError(f"criterion={criterion!r} needs {'grads=' if criterion == 'taylor' else 'key='}")
    if not 0 <= least < 1:
        raise UserError(f"least is a share of the channels, in [0, 1), got {least:g}")
