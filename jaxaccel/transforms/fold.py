"""What depends on the parameters alone, computed once."""

from collections.abc import Callable
from typing import Any

import jax

from jaxaccel.arrays import LowRankArray
from jaxaccel.errors import UserError
from jaxaccel.interpret import is_compressed
from jaxaccel.interpret.affine import folded
from jaxaccel.interpret.partial import Split, split
from jaxaccel.transforms.compressed import compressed
from jaxaccel.trees import parameter_path

PyTree = Any


def fold(f: Callable[..., Any], params: PyTree, *args: Any) -> tuple[Callable[..., Any], PyTree]:
    """`f` without the work that its parameters alone decide, and the parameters that are left.

    Two things happen: factors and offsets after a matrix product or convolution move into its weights (BatchNorm in
    inference, a bias, a scale); and all that depends on `params` alone is computed now instead of at each call. Fold
    before you quantise: ``g, folded = ja.fold(f, params, x); q = ja.quantize(folded)``. Only chains of real floating
    numbers move: integers round otherwise. A factor that the weights' dtype would round more than the product's does
    (bfloat16 weights of a float32 product, float16) stays behind the product, as a single one.

    Args:
      f: called as ``f(params, *args)``, in inference: custom derivatives are dropped.
      params: its parameters and, where it has any, the statistics that BatchNorm normalises by. Of low-rank ones
        both factors become weights of their own, ``kernel/left`` and ``kernel/right``. What is no array is a constant.
      args: examples of the other arguments, arrays or `jax.ShapeDtypeStruct`s. Only shapes and dtypes count; the folded
        function takes other batch sizes as well.

    Returns:
      (g, folded): ``g(folded, *args)`` equals ``f(params, *args)`` to rounding. `folded` is a nested dictionary in
      which weights keep the paths that they had.

    Raises:
      UserError: `params` are quantised or shared already; or, when g is called, it needs other parameters at these
        shapes.
    """
    compressions = [x for x in jax.tree.leaves(params, is_leaf=is_compressed) if is_compressed(x)]
    if not all(isinstance(x, LowRankArray) and _dense(x) for x in compressions):
        raise UserError("fold the float parameters first, then quantize or share what fold returns")
    if compressions:
        f = compressed(f)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    held = [i for i, (_, x) in enumerate(leaves) if hasattr(x, "shape") and hasattr(x, "dtype")]
    arrays = [leaves[i][1] for i in held]
    paths = [parameter_path(leaves[i][0]) for i in held]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]

    def halves(*args: Any) -> tuple[Split, Any]:
        inputs, in_tree = jax.tree.flatten(args)
        out_tree: list[Any] = []

        def flat(values: list[Any], inputs: list[Any]) -> list[Any]:
            now = [x for _, x in leaves]  # numbers and texts among the parameters are constants
            for i, value in zip(held, values, strict=True):
                now[i] = value
            out, tree = jax.tree.flatten(
                f(jax.tree.unflatten(treedef, now), *jax.tree.unflatten(in_tree, inputs))
            )
            out_tree.append(tree)
            return out

        program = jax.make_jaxpr(flat)(shapes, inputs)
        closed = jax.make_jaxpr(lambda *values: folded(program, len(held), values))(*shapes, *inputs)
        return split(closed, paths), out_tree[0]

    first, _ = halves(*args)
    values = jax.jit(first.known)(arrays)

    def g(params: PyTree, *args: Any) -> Any:
        now, out_tree = halves(*args)
        if now.names != first.names or now.shapes != first.shapes:
            raise UserError(
                "the function needs other parameters at these shapes; fold it with examples of them"
            )
        return jax.tree.unflatten(out_tree, now.rest(_flat(params, first.names), jax.tree.leaves(args)))

    g.__name__ = getattr(f, "__name__", "g")
    return g, _nested(first.names, values)


def _dense(x: LowRankArray) -> bool:
    return not is_compressed(x.left) and not is_compressed(x.right)


def _nested(names: tuple[str, ...], values: list[Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _flat(tree: PyTree, names: tuple[str, ...]) -> list[Any]:
    values = []
    for name in names:
        node = tree
        for part in name.split("/"):
            node = node[part]
        values.append(node)
    return values
