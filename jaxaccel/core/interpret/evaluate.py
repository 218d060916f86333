"""A function's program, evaluated with other rules and with other kinds of array: `transform`."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.interpret.compressed import as_shape, is_compressed
from jaxaccel.core.interpret.interpreter import Interpreter
from jaxaccel.core.interpret.jaxprs import Place, split_consts
from jaxaccel.core.interpret.transformation import Transformation
from jaxaccel.core.paths import check_where, parameter_path


def transform(f: Callable[..., Any], t: Transformation) -> Callable[..., Any]:
    """`f` evaluated by the rules of `t`, with the same signature.

    Arrays among the arguments are traced, all other leaves (numbers, texts, booleans) stay as they are. With
    `t.observation` the result is a pair: that of f, and a dictionary of what was observed, by site name.
    """

    @functools.wraps(f)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        held = is_compressed if t.arrays else None
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=held)
        leaves = [
            jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x for _, x in paths_and_leaves
        ]
        traced = [i for i, leaf in enumerate(leaves) if _is_array(leaf) or (t.arrays and is_compressed(leaf))]
        out_tree: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            now = list(leaves)
            for i, array in zip(traced, arrays, strict=True):
                now[i] = array
            args, kwargs = jax.tree.unflatten(treedef, now)
            out, tree = jax.tree.flatten(f(*args, **kwargs))
            out_tree.append(tree)
            return out

        closed = jax.make_jaxpr(flat)(*[as_shape(leaves[i]) for i in traced])
        names = _parameter_paths(f, t.argnums, len(args), [path for path, _ in paths_and_leaves])
        for option, where in t.where.items():
            check_where(where, [name for name in names if name is not None], option)
        interpreter = Interpreter(t)
        outs, observed, paths = interpreter.evaluate(
            *split_consts(closed), [leaves[i] for i in traced], [names[i] for i in traced], Place()
        )
        dense = [interpreter.dense(x, Place(), path=path) for x, path in zip(outs, paths, strict=True)]
        out = jax.tree.unflatten(out_tree[0], dense)
        interpreter.finish()
        return (out, observed) if t.observation else out

    return transformed


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def _parameter_paths(
    f: Callable[..., Any], argnums: int | Sequence[int], positional: int, paths: list[tuple[Any, ...]]
) -> list[str | None]:
    """For each leaf of (args, kwargs): its path within the parameters, or None where it is no parameter."""
    # Negative ones count from the last argument that is given by position, as those of `jax.grad` do.
    given = (argnums,) if isinstance(argnums, int) else argnums
    chosen = {number + positional if number < 0 else number for number in given}
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []

    def one(path: tuple[Any, ...]) -> str | None:
        keyword = path[0].idx == 1
        if keyword:
            name = path[1].key
            number = names.index(name) if name in names else -1
        else:
            number = path[1].idx
            name = names[number] if number < len(names) else f"args[{number}]"
        return (parameter_path(path[2:]) or name) if number in chosen else None

    return [one(path) for path in paths]
