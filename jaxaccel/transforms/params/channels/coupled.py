"""The channels of a function's parameters: what can only be removed together, and what can be removed at all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.paths import parameter_path, path_text
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.channels.trace import trace_channels

PyTree = Any
Kept = Mapping[str, Mapping[int, np.ndarray]]
"""By path and axis: the positions that stay, rising."""


@dataclasses.dataclass(frozen=True)
class Coupled:
    """Axes that lose positions together: a convolution's outputs, its BatchNorm's vectors, the next one's inputs."""

    name: str
    """The first weight whose outputs they are, else the first array."""
    members: tuple[tuple[str, int], ...]
    """(path, axis)."""
    sets: tuple[tuple[tuple[str, int, int], ...], ...]
    """Each channel: all its places (path, axis, position)."""


class Flat:
    """A pytree of dense arrays as a list, with paths. Numbers, texts and other objects of Python are constants."""

    def __init__(self, params: PyTree) -> None:
        leaves, self.treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_compressed)
        if any(is_compressed(x) for _, x in leaves):
            raise UserError("remove channels first, then compress what is left: params must be dense")
        self.paths = [parameter_path(path) for path, _ in leaves]
        self.leaves = [x for _, x in leaves]
        if len(set(self.paths)) < len(self.paths):  # params and state of the same module share paths
            self.paths = [path_text(path) for path, _ in leaves]
        self._number = {path: i for i, path in enumerate(self.paths)}

    def leaf(self, path: str) -> Any:
        """The leaf of that path."""
        return self.leaves[self._number[path]]

    def call(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """f of a list of leaves; the constants are always those of the pytree."""

        def called(leaves: Sequence[Any], *args: Any) -> Any:
            arrays = [new if is_array(x) else x for new, x in zip(leaves, self.leaves, strict=True)]
            return f(jax.tree.unflatten(self.treedef, arrays), *args)

        return called

    def shapes(self, kept: Kept) -> list[jax.ShapeDtypeStruct]:
        """Those of the leaves when only `kept` is left of them; a constant counts as a number."""
        found = []
        for path, leaf in zip(self.paths, self.leaves, strict=True):
            x = leaf if is_array(leaf) else np.float32(0)
            sizes = [len(kept[path][a]) if a in kept.get(path, {}) else n for a, n in enumerate(jnp.shape(x))]
            found.append(jax.ShapeDtypeStruct(tuple(sizes), jnp.result_type(x)))
        return found

    def cut(self, kept: Kept) -> PyTree:
        """The pytree with what is kept."""
        leaves = [take_kept(x, kept.get(path, {})) for path, x in zip(self.paths, self.leaves, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    def masked(self, kept: Kept, factor: float = 0.0) -> PyTree:
        """The pytree with `factor` times what is not kept."""
        leaves = [
            _faded(x, kept.get(path, {}), factor) for path, x in zip(self.paths, self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def is_array(x: Any) -> bool:
    """Whether a leaf is an array, of JAX, NumPy or shapes alone."""
    return hasattr(x, "dtype")


def take_kept(x: Any, kept: Mapping[int, np.ndarray]) -> jax.Array:
    """`x` with the kept positions of each axis."""
    for axis, positions in kept.items():
        x = jnp.take(x, positions, axis)
    return x


def _faded(x: Any, kept: Mapping[int, np.ndarray], factor: float) -> jax.Array:
    for axis, positions in kept.items():
        there = np.isin(np.arange(x.shape[axis]), positions)
        x = jnp.where(
            there.reshape([-1 if i == axis else 1 for i in range(x.ndim)]),
            x,
            jnp.asarray(factor, x.dtype) * x if factor else 0,
        )
    return x


def find_coupled(
    f: Callable[..., Any], tree: Flat, args: Sequence[Any]
) -> tuple[list[Coupled], dict[str, str]]:
    """Sets of channels by the axes that they live on; and what needs outputs of weights that cannot go, by path."""
    sets, whole = trace_channels(tree.call(f), tree.shapes({}), *args)
    groups: dict[tuple[tuple[str, int], ...], list[tuple[tuple[str, int, int], ...]]] = {}
    for places in sets:
        named = tuple((tree.paths[i], axis, position) for i, axis, position in places)
        groups.setdefault(tuple(sorted({(path, axis) for path, axis, _ in named})), []).append(named)
    needed: dict[str, list[str]] = {}
    for (number, axis, _), why in whole.items():
        if axis == np.ndim(tree.leaves[number]) - 1 > 0:
            needed.setdefault(tree.paths[number], []).append(why)
    says = {
        path: f"{why[0]} needs {len(why)} of its {jnp.shape(tree.leaf(path))[-1]} outputs"
        for path, why in needed.items()
    }
    free = [
        Coupled(_name(members, tree), members, tuple(some))
        for members, some in groups.items()
        if len(some) > 1
    ]
    return free, says


def _name(members: Sequence[tuple[str, int]], tree: Flat) -> str:
    outputs = [path for path, axis in members if axis == jnp.ndim(tree.leaf(path)) - 1 > 0]
    return outputs[0] if outputs else members[0][0]


def find_working(
    f: Callable[..., Any], tree: Flat, args: Sequence[Any], axes: Sequence[Coupled]
) -> tuple[list[Coupled], dict[str, str]]:
    """Those that f works without one channel of, and why not of the others; halves are tried until all is known."""
    shapes = [_shape(x) for x in jax.tree.leaves(args)]
    args = jax.tree.unflatten(jax.tree.structure(args), shapes)
    expected = jax.eval_shape(tree.call(f), tree.shapes({}), *args)

    def trouble(some: Sequence[Coupled]) -> str:
        # One channel, and half of them: a size that is computed from another one may come out right by chance.
        one = [(c, len(c.sets) - 1) for c in some]
        half = [(c, i) for c in some for i in range(len(c.sets) // 2)]
        try:
            found = [
                jax.eval_shape(tree.call(f), tree.shapes(drop_channels(few, tree)), *args)
                for few in (one, half)
            ]
        except Exception as error:  # whatever f raises for sizes that it does not expect
            return next(
                (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
            )[:160]
        return "" if all(shapes == expected for shapes in found) else "the results would have another shape"

    def tried(some: Sequence[Coupled]) -> tuple[list[Coupled], dict[str, str]]:
        if not some or not (why := trouble(some)):
            return list(some), {}
        if len(some) == 1:
            return [], {some[0].name: f"the function fixes its size ({why})"}
        half = len(some) // 2
        (a, b), (c, d) = tried(some[:half]), tried(some[half:])
        return a + c, b | d

    return tried(axes)


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) if hasattr(x, "dtype") else x


def drop_channels(removed: Sequence[tuple[Coupled, int]], tree: Flat) -> dict[str, dict[int, np.ndarray]]:
    """What stays when those channels go, each given by its coupled axes and its number."""
    gone: dict[tuple[str, int], set[int]] = {}
    for axes, number in removed:
        for path, axis, position in axes.sets[number]:
            gone.setdefault((path, axis), set()).add(position)
    kept: dict[str, dict[int, np.ndarray]] = {}
    for (path, axis), positions in gone.items():
        size = jnp.shape(tree.leaf(path))[axis]
        kept.setdefault(path, {})[axis] = np.setdiff1d(np.arange(size), sorted(positions))
    return kept
