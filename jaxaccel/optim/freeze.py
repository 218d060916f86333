"""Parameters that stay as they are, for the whole run or for its first part."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.core.paths import Where, parameter_path
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.select import check_selects_parameters, selects_parameter

PyTree = Any


def mark_frozen(params: PyTree, where: Where, option: str = "freeze") -> PyTree:
    """A pytree like `params`, True where `where` selects.

    Raises:
      UserError: it selects nothing, or everything.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [parameter_path(path) for path, _ in leaves]
    check_selects_parameters(where, paths, option)
    flags = [selects_parameter(where, path) for path in paths]
    if all(flags):
        raise UserError(f"{option} selects all {len(flags)} parameters, and nothing would be trained")
    return jax.tree.unflatten(treedef, flags)


def stop_gradients(params: PyTree, where: Where) -> PyTree:
    """`params`, of which those that `where` selects have no gradient, and cost none."""
    return jax.tree.map(
        lambda stop, x: jax.lax.stop_gradient(x) if stop else x, mark_frozen(params, where), params
    )


def freeze(tx: optax.GradientTransformation, where: Where) -> optax.GradientTransformationExtraArgs:
    """`tx` for the parameters that `where` does not select; the others stay, and have no optimizer state.

    Of what the trainer gives optimizers besides, ``grad`` and the functions ``value_fn``, ``obj_fn`` and ``grad_fn``,
    `tx` sees the same: functions of the parameters that move.

    Args:
      tx: any optimizer.
      where: patterns of paths, or a predicate.

    Raises:
      UserError: `where` selects nothing, or everything.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> Any:
        return tx.init(_rest(params, where))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        rest = None if params is None else _rest(params, where)
        moved, state = tx.update(_rest(updates, where), state, rest, **_of_the_rest(extra, params, where))
        merged = jax.tree.map(
            lambda stop, u, m: jnp.zeros_like(u) if stop else m, mark_frozen(updates, where), updates,
            _filled(moved, updates, where),
        )  # fmt: skip
        return merged, state

    return optax.GradientTransformationExtraArgs(init, update)


def _rest(tree: PyTree, where: Where) -> PyTree:
    """`tree` with Optax's masked nodes, which hold no arrays, where `where` selects."""
    return jax.tree.map(lambda stop, x: optax.MaskedNode() if stop else x, mark_frozen(tree, where), tree)


def _of_the_rest(extra: Mapping[str, Any], params: PyTree, where: Where) -> dict[str, Any]:
    def whole(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda rest, *args, **kwargs: f(_filled(rest, params, where), *args, **kwargs)

    def masked(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return lambda *args, **kwargs: _rest(f(*args, **kwargs), where)

    restricted = {
        "grad": lambda grad: _rest(grad, where),
        "value_fn": whole,
        "obj_fn": whole,
        "grad_fn": lambda f: masked(whole(f)),
    }
    return {name: restricted.get(name, lambda x: x)(x) for name, x in extra.items()}


def _filled(moved: PyTree, like: PyTree, where: Where) -> PyTree:
    flags = mark_frozen(like, where)
    leaves = iter(jax.tree.leaves(moved))
    return jax.tree.map(lambda stop, x: x if stop else next(leaves), flags, like)


class UnfreezeState(NamedTuple):
    """State of `unfreeze_gradually`."""

    step: jax.Array
    """() int32: updates done."""
    inner: Any
    """State of the optimizer that is wrapped."""


def unfreeze_gradually(
    tx: optax.GradientTransformation, at: Mapping[str, float], steps: int
) -> optax.GradientTransformationExtraArgs:
    """`tx`, under which groups of parameters begin to move later (Howard & Ruder 2018, arXiv:1801.06146, section 3.3).

    Args:
      tx: any optimizer. Until its time a group has gradients of 0 and no updates, weight decay included.
      at: for each pattern of paths the share of the run after which it moves; the last one that fits counts.
      steps: of the run.

    Raises:
      UserError: a pattern fits nothing, or a share is not in [0, 1].
    """
    tx = optax.with_extra_args_support(tx)
    for where, share in at.items():
        if not 0 <= share <= 1:
            raise UserError(f"unfreeze takes shares of the run, in [0, 1], got {share:g} for {where}")

    def starts(tree: PyTree) -> PyTree:
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        paths = [parameter_path(path) for path, _ in leaves]
        for where in at:
            check_selects_parameters(where, paths, "unfreeze")
        found = [0] * len(paths)
        for where, share in at.items():
            found = [
                round(share * steps) if selects_parameter(where, p) else n
                for p, n in zip(paths, found, strict=True)
            ]
        return jax.tree.unflatten(treedef, found)

    def init(params: PyTree) -> UnfreezeState:
        starts(params)
        return UnfreezeState(jnp.int32(0), tx.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, UnfreezeState]:
        def held(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda n, x: jnp.where(state.step >= n, x, 0), starts(tree), tree)

        if "grad_fn" in extra:
            gradient = extra["grad_fn"]
            extra["grad_fn"] = lambda *args, **kwargs: held(gradient(*args, **kwargs))
        moved, inner = tx.update(held(updates), state.inner, params, **extra)
        return held(moved), UnfreezeState(state.step + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)
