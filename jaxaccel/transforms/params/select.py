"""The leaves of a pytree that a pattern selects, and the pytree with others in their place."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.paths import Where, check_where, parameter_path, selects
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.stacked import count_stack_axes

PyTree = Any


class Selected(Mapping[str, Any]):
    """Floating-point leaves by path. The factors of a `LowRankArray` count as leaves: ``kernel/left``."""

    stack_axes: Mapping[str, int]
    """By path, how many axes lie in front of those of one layer: 1 in a stack that a loop runs over, else 0."""

    def __init__(
        self, params: PyTree, where: Where, at_least: int, option: str, stacked: Where | None
    ) -> None:
        self._leaves, self._treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_opaque)
        self._paths = [parameter_path(path) for path, _ in self._leaves]
        floats = {p: x for p, (_, x) in zip(self._paths, self._leaves, strict=True) if _is_float(x)}
        axes = count_stack_axes({p: jnp.shape(x) for p, x in floats.items()}, stacked)
        able = {p: x for p, x in floats.items() if jnp.ndim(x) >= at_least + axes[p]}
        check_selects_parameters(where, able, option)
        self._found = {p: x for p, x in able.items() if selects_parameter(where, p)}
        self.stack_axes = {p: axes[p] for p in self._found}

    def __getitem__(self, path: str) -> Any:
        return self._found[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def check_names(self, given: Mapping[str, Any], option: str) -> None:
        """Checks that every path of `given`, the values of `option`, is one of these.

        Raises:
          UserError: one is not; it names the path nearest to it.
        """
        for path in given:
            if path not in self._found:
                (near,) = difflib.get_close_matches(path, self._found, n=1, cutoff=0.0)
                raise UserError(
                    f"{option} has {given[path]} for {path}, which is none of the {len(self)} selected weights; "
                    f"nearest: {near}"
                )

    def replaced(self, new: Mapping[str, Any], rest: Any = Ellipsis) -> PyTree:
        """The pytree with `new` leaves by path; all others are what they were, or `rest`."""
        leaves = [
            new.get(path, x if rest is Ellipsis else rest)
            for path, (_, x) in zip(self._paths, self._leaves, strict=True)
        ]
        return jax.tree.unflatten(self._treedef, leaves)


def select_leaves(
    params: PyTree,
    where: Where,
    *,
    at_least: int = 1,
    option: str = "where",
    stacked: Where | None = None,
) -> Selected:
    """The floating-point leaves of `params` that `where` selects, by path.

    A pattern that selects a low-rank weight selects its factors. Other compressed leaves are never selected.

    Args:
      params: any pytree of arrays.
      where: patterns of paths, or a predicate.
      at_least: axes that a leaf needs, without the one that counts the layers of a stack.
      option: what `where` is called in a message.
      stacked: which leaves are those of several layers; by default those that `find_stacked` finds.

    Raises:
      UserError: `where` selects none.
    """
    return Selected(params, where, at_least, option, stacked)


def is_opaque(x: Any) -> bool:
    """Whether `x` is a compressed array that is not looked into: any but a low-rank one."""
    return is_compressed(x) and not isinstance(x, LowRankArray)


def _is_float(x: Any) -> bool:
    return not is_compressed(x) and jnp.issubdtype(jnp.result_type(x), jnp.floating)


def selectable_names(path: str) -> tuple[str, ...]:
    """By what a leaf may be selected: its path, and that of the weight whose factor it is."""
    parent, _, last = path.rpartition("/")
    return (path, parent) if last in ("left", "right") and parent else (path,)


def selects_parameter(where: Where, path: str) -> bool:
    """Whether `where` selects `path`, or the low-rank weight whose factor that is."""
    return any(selects(where, name) for name in selectable_names(path))


def check_selects_parameters(where: Where, paths: Iterable[str], option: str = "where") -> None:
    """Checks that every pattern of `where` selects one of `paths`, or a low-rank weight whose factor that is.

    Raises:
      UserError: one selects none; it names the paths nearest to it.
    """
    check_where(where, [name for path in paths for name in selectable_names(path)], option)
