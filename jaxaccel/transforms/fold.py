"""What depends on the parameters alone, computed once."""

from collections.abc import Callable
from typing import Any

import jax

from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.interpret.affine import evaluate_folded
from jaxaccel.core.interpret.partial_eval import Split, split_program
from jaxaccel.core.paths import parameter_path
from jaxaccel.errors import UserError
from jaxaccel.transforms.compressed import compressed

PyTree = Any
_DECIDED = (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError)
"""What JAX raises where a program needs to know a number."""


def fold(f: Callable[..., Any], params: PyTree, *args: Any) -> tuple[Callable[..., Any], PyTree]:
    """`f` without the work that its parameters alone decide, and the parameters that are left.

    Two things happen: factors and offsets after a matrix product or convolution move into its weights (BatchNorm in
    inference, a bias, a scale); and all that depends on `params` alone is computed now instead of at each call. Fold
    before you quantize: ``g, folded = ja.fold(f, params, x); q = ja.quantize(folded)``. Only chains of real floating
    numbers move: integers round otherwise. A factor that the weights' dtype would round more than the product's does
    (bfloat16 weights of a float32 product, float16) stays behind the product, as a single one.

    Args:
      f: called as ``f(params, *args)``, in inference: custom derivatives are dropped.
      params: its parameters and, where it has any, the statistics that BatchNorm normalizes by. Of low-rank ones
        both factors become weights of their own, ``kernel/left`` and ``kernel/right``. What is no array is a constant.
      args: examples of the other arguments, arrays or `jax.ShapeDtypeStruct`s. Only shapes and dtypes count; the folded
        function takes other batch sizes as well. Texts, booleans and other objects are constants; numbers are not.

    Returns:
      (g, folded): ``g(folded, *args)`` equals ``f(params, *args)`` to rounding. `folded` is a nested dictionary in
      which weights keep the paths that they had.

    Raises:
      UserError: `params` are quantized or shared already; f decides by a number among its arguments; or, when g is
        called, it needs other parameters at these shapes, or got other constants.
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
    constants = _constants(args)

    def halves(*args: Any) -> tuple[Split, Any]:
        inputs, out_tree = _arrays(args), []

        def flat(values: list[Any], inputs: list[Any]) -> list[Any]:
            now = [x for _, x in leaves]  # numbers and texts among the parameters are constants
            for i, value in zip(held, values, strict=True):
                now[i] = value
            given = iter(inputs)
            now_args = jax.tree.map(lambda x: x if _is_constant(x) else next(given), args)
            try:
                result = f(jax.tree.unflatten(treedef, now), *now_args)
            except _DECIDED as error:
                raise UserError(
                    "the function decides by the value of a number or an array, which fold leaves open: bind a number "
                    "with functools.partial(f, name=...), decide by arrays with jax.lax.cond"
                ) from error
            out, tree = jax.tree.flatten(result)
            out_tree.append(tree)
            return out

        program = jax.make_jaxpr(flat)(shapes, inputs)
        closed = jax.make_jaxpr(lambda *values: evaluate_folded(program, len(held), values))(*shapes, *inputs)
        return split_program(closed, paths), out_tree[0]

    first, _ = halves(*args)
    values = jax.jit(first.known)(arrays)

    def g(params: PyTree, *args: Any) -> Any:
        if _constants(args) != constants:
            raise UserError(
                f"the function was folded for the constants {list(constants.values())} among its arguments; fold it "
                "again for others"
            )
        now, out_tree = halves(*args)
        if now.names != first.names or now.shapes != first.shapes:
            raise UserError(
                "the function needs other parameters at these shapes; fold it with examples of them"
            )
        return jax.tree.unflatten(out_tree, now.rest(_flat(params, first.names), _arrays(args)))

    g.__name__ = getattr(f, "__name__", "g")
    return g, _nested(first.names, values)


def _is_constant(x: Any) -> bool:
    """Whether an argument is a text, a boolean or another object that JAX cannot trace."""
    return isinstance(x, bool) or not (isinstance(x, (int, float, complex)) or hasattr(x, "dtype"))


def _constants(args: tuple[Any, ...]) -> dict[int, Any]:
    return {i: x for i, x in enumerate(jax.tree.leaves(args)) if _is_constant(x)}


def _arrays(args: tuple[Any, ...]) -> list[Any]:
    return [x for x in jax.tree.leaves(args) if not _is_constant(x)]


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
