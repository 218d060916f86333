"""Learning-rate multipliers by parameter path: frozen parts, faster heads, layer-wise decay.

They multiply updates, so they stand behind the optimizer: ``optax.chain(optax.adamw(...), scale_by_path({...}))``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxaccel.core.paths import path_text
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.select import check_selects_parameters, selects_parameter

PyTree = Any

FIRST = ("**/{stem,embed,embedding,embeddings,patch_embed,positions,pos_embed,class_token,cls_token}/**",)
"""What stands before all numbered layers."""


def scale_by_path(groups: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters that a pattern matches.

    Args:
      groups: pattern (see `jaxaccel.core.paths.matches`) -> multiplier; of several that match a parameter the last one
        counts. 0 freezes, whatever the update was, and parameters that none matches keep theirs.

    Raises:
      UserError: a multiplier is negative or not finite; at `init`, a pattern matches no parameter.
    """
    for pattern, multiplier in groups.items():
        if not 0 <= multiplier < math.inf:
            raise UserError(f"scale_by_path: the multiplier of {pattern!r} must be >= 0, not {multiplier}")

    def multipliers(paths: Sequence[str]) -> dict[str, float]:
        check_selects_parameters(list(groups), paths, "scale_by_path")
        return {
            path: [
                1.0,
                *(multiplier for pattern, multiplier in groups.items() if selects_parameter(pattern, path)),
            ][-1]
            for path in paths
        }

    return _multiplied(multipliers)


def layer_decay(decay: float, first: Sequence[str] = FIRST) -> optax.GradientTransformation:
    """Multiplies updates by decay^(depth of the top layer - depth of the parameter's layer).

    Layer-wise learning-rate decay for fine-tuning (Bao et al. 2021, arXiv:2106.08254; Clark et al. 2020,
    arXiv:2003.10555): 0.65 to 0.9. The head keeps its rate. `layer_depths` says what the layers are.

    Raises:
      UserError: `decay` is not in (0, 1]; at `init`, no parameter stands in a numbered layer.
    """
    if not 0 < decay <= 1:
        raise UserError(f"layer_decay: decay={decay} must be in (0, 1]")

    def multipliers(paths: Sequence[str]) -> dict[str, float]:
        depths = _depths(paths, first)
        top = max(depths.values())
        return {path: decay ** (top - depth) for path, depth in depths.items()}

    return _multiplied(multipliers)


def layer_depths(params: PyTree, first: Sequence[str] = FIRST) -> dict[str, int]:
    """The depth of each parameter's layer, by path, shallow ones first.

    Layers are the numbered parts of a model: the first run of numbers in a path is a layer's number, so that
    ``blocks/3/mlp/up/kernel`` is of layer (3) and ``stages/1/0/conv1/kernel`` of layer (1, 0); numbers further down
    (``stages/2/residuals/0``) are within the layer. They are counted from 1 in the order of these numbers, and equal
    numbers are equal layers, as in two towers side by side. Without a number, what a pattern of `first` matches is of
    depth 0 (stem, embeddings, positions, class token), and all the rest (last norm, head) stands above all layers.

    Raises:
      UserError: no parameter stands in a numbered layer.
    """
    paths = [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return dict(sorted(_depths(paths, first).items(), key=lambda item: item[1]))


def _depths(paths: Sequence[str], first: Sequence[str]) -> dict[str, int]:
    numbers = {path: _number(path) for path in paths}
    layers = sorted({number for number in numbers.values() if number})
    if not layers:
        raise UserError(
            "layer_decay needs numbered layers (blocks/0/..., stages/1/0/...); the parameters are "
            + ", ".join(paths[:5])
        )
    depth = {number: i for i, number in enumerate(layers, 1)}

    def of(path: str) -> int:
        return (
            depth[numbers[path]]
            if numbers[path]
            else 0
            if selects_parameter(first, path)
            else len(layers) + 1
        )

    return {path: of(path) for path in paths}


def _number(path: str) -> tuple[int, ...]:
    """The first run of numbers in `path`; () where there is none."""
    run: list[int] = []
    for part in path.split("/"):
        if part.isdecimal():
            run.append(int(part))
        elif run:
            break
    return tuple(run)


def _multiplied(multipliers: Callable[[Sequence[str]], Mapping[str, float]]) -> optax.GradientTransformation:
    """Multiplies each update by the number that `multipliers` makes of all paths."""

    def factors(tree: PyTree) -> Mapping[str, float]:
        # Of parameters that are frozen as well, so that layers are counted among all.
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        return multipliers([path_text(path) for path, _ in leaves])

    def init(params: PyTree) -> optax.EmptyState:
        factors(params)
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        del params
        by = factors(updates)

        def scaled(path: tuple[Any, ...], u: jax.Array) -> jax.Array:
            factor = by[path_text(path)]
            # No product with 0: what is frozen stays so when its gradient overflows.
            return u * factor if factor else jnp.zeros_like(u)

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)
