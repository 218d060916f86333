"""Weights of a file into a model, matched by structure, shape and name."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxaccel.core.interpret import first_uses
from jaxaccel.core.options import checked
from jaxaccel.core.packages import find_weights
from jaxaccel.core.paths import Where, check_where, parameter_path, selects
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import Model, abstract_variables
from jaxaccel.models.pretrained.files import read
from jaxaccel.models.pretrained.layouts import Layer, arrange_axes, group_layers
from jaxaccel.models.pretrained.match import Pair, check_head, check_order, match_layers
from jaxaccel.models.pretrained.names import natural_key
from jaxaccel.models.pretrained.recurrent import split_recurrent

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load_pretrained` found."""

    params: PyTree
    state: PyTree
    pairs: tuple[Pair, ...]
    """Each layer of the model with that of the file which it got, in the order of use."""
    fresh: tuple[str, ...]
    """Layers of the model that kept what they had."""
    unused: tuple[str, ...]
    """Layers of the file that nothing took."""

    def report(self) -> str:
        """One line a layer, for people: what it got, and what decided that."""
        width = max((len(pair.target.name) for pair in self.pairs), default=0)
        lines = [
            f"{p.target.name:<{width}}  {p.source.name}  (by {p.by}) {p.target.shapes}" for p in self.pairs
        ]
        lines += [f"{name:<{width}}  kept as it was" for name in self.fresh]
        return "\n".join([*lines, *(f"{name} of the file is not used" for name in self.unused)])


@checked
def load_pretrained(
    model: Model | nnx.Module | tuple[PyTree, PyTree],
    file: str | Path,
    *,
    inputs: tuple[PyTree, ...] = (),
    names: Mapping[str, str] | None = None,
    fresh: Where = (),
    new_head: bool = False,
    inside: str | None = None,
) -> Loaded:
    """The weights in `file` as parameters and state of `model`.

    Layers are matched by what arrays they have, up to PyTorch's order of axes (OIHW kernels, transposed matrices,
    fused queries, keys and values, heads as one axis) and its way of keeping LSTMs and GRUs, by their names, and by
    their order. Nothing is guessed: where two pairings are as good, that is an error.

    Args:
      model: as `as_model` makes it; or an NNX module, which gets the weights; or (params, state) of arrays.
      file: safetensors, npz or a PyTorch checkpoint (see `pretrained.files.read`); nothing in it is executed. Or the
        name of a model whose weights an installed package brings (`jaxaccel.core.packages.PACKAGES`).
      inputs: one batch's inputs as `jax.ShapeDtypeStruct`s. With them the order in which the model uses its layers
        counts, which tells layers apart whose names say nothing; without, the order of their names does.
      names: layers of the file that are to be layers of the model: ``{"layer1.0.conv1": "stages/0/0/conv1"}``.
      fresh: paths of parameters that keep what they have: ``"head/**"``, for other classes.
      new_head: one layer for which the file has one with another number of outputs keeps what it has; so does the last
        one that the model uses, where the file has none.
      inside: name of the dictionary to take from a PyTorch checkpoint that has several: ``"model_ema"``,
        ``"ema.module"``. Otherwise the order of `pretrained.files.INSIDE` decides.

    Raises:
      UserError: the file cannot be read, a layer of the model finds none of the file or several that are as good, or
        `names` or `fresh` fit nothing.
    """
    weights = split_recurrent(read(find_weights(file), inside))
    params, state = _arrays_of(model)
    flat, treedef = jax.tree_util.tree_flatten_with_path((params, state))
    paths = [parameter_path(path[1:]) for path, _ in flat]
    where = [fresh] if isinstance(fresh, str) or callable(fresh) else list(fresh)
    for pattern in where:
        check_where(pattern, paths, "fresh")
    kept = {path for path in paths if any(selects(pattern, path) for pattern in where)}
    by_path = dict(zip(paths, (leaf for _, leaf in flat), strict=True))
    order = _uses(model, paths, inputs)
    targets = group_layers(
        (path, by_path[path].shape) for path in order or sorted(paths, key=natural_key) if path not in kept
    )
    # Some programs sort by name; people count from layer2 to layer10, and then the order says less.
    is_sorted = list(weights) == sorted(weights)
    listed = sorted(weights, key=natural_key) if is_sorted else weights
    sources = group_layers((name, weights[name].shape) for name in listed)
    known = "none" if order is None else "counted" if is_sorted else "all"
    found, missing, unused = match_layers(sources, targets, names or {}, order=known)
    if is_sorted and order is not None:
        check_order(found)
    if new_head and len(missing) == 1 and _can_be_new(missing[0], unused, targets if order else ()):
        head = missing.pop()
        check_head(head, found)
        kept |= {path for path, _ in head.parts.values()}
    if missing:
        raise UserError(_missing(file, missing, unused))
    values: dict[str, jax.Array] = {}
    for pair in found:
        for role, (path, shape) in pair.target.parts.items():
            value = arrange_axes(_value(weights, pair.source, role), shape, role, path)
            values[path] = jnp.asarray(value, by_path[path].dtype)
    if kept and isinstance(model, Model):
        by_path |= _start(model, paths, kept)
    leaves = [values[path] if path in values else by_path[path] for path in paths]
    params, state = jax.tree.unflatten(treedef, leaves)
    if isinstance(model, nnx.Module):
        _fill(model, params, state)
    return Loaded(params, state, tuple(found), tuple(sorted(kept)), tuple(layer.name for layer in unused))


def _start(model: Model, paths: Sequence[str], kept: Collection[str]) -> dict[str, jax.Array]:
    """The values by path that those of `kept` start with: of all others nothing is computed or compiled."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = jax.tree.leaves(model.init(key))
        return {path: leaf for path, leaf in zip(paths, leaves, strict=True) if path in kept}

    return jax.jit(init)(jax.random.key(0))


def _can_be_new(layer: Layer, unused: Sequence[Layer], in_order: Sequence[Layer]) -> bool:
    """Whether `layer`, for which the file has nothing, is a head; `in_order` are all layers as they are used."""
    last = bool(in_order) and layer.order == max(other.order for other in in_order)
    return last or any(_outputs_differ(other, layer) for other in unused)


def _outputs_differ(source: Layer, target: Layer) -> bool:
    """Whether both are the same layer but for the number of outputs, PyTorch's first axis and Flax's last."""
    if source.parts.keys() != target.parts.keys() or "weight" not in target.parts:
        return False
    theirs, ours = source.parts["weight"][1], target.parts["weight"][1]
    return math.prod(theirs[1:]) == math.prod(ours[:-1])


def _arrays_of(model: Any) -> tuple[PyTree, PyTree]:
    """(params, state), of a `Model` as shapes."""
    if isinstance(model, nnx.Module):
        _, params, _, state = nnx.split(model, nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)
    return abstract_variables(model) if isinstance(model, Model) else model


def _fill(module: nnx.Module, params: PyTree, state: PyTree) -> None:
    _, old_params, _, old_state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    for old, new in ((old_params, params), (old_state, state)):
        nnx.replace_by_pure_dict(old, new)
        nnx.update(module, old)


def _uses(model: Any, paths: list[str], inputs: tuple[PyTree, ...]) -> list[str] | None:
    """`paths` in the order in which the model uses them; None where that is not known."""
    if not inputs or not isinstance(model, Model):
        return None

    def infer(both: tuple[PyTree, PyTree], *inputs: PyTree) -> PyTree:
        return model.apply(*both, *inputs, key=jax.random.key(0), train=False)[0]

    uses = first_uses(infer, abstract_variables(model), *inputs)
    return [paths[i] for i in sorted(range(len(paths)), key=lambda i: (uses[i], natural_key(paths[i])))]


def _value(weights: Mapping[str, np.ndarray], source: Layer, role: str) -> np.ndarray:
    # Two layers with one array each may call it differently: a scale, or a parameter by itself.
    name, _ = source.parts[role] if role in source.parts else next(iter(source.parts.values()))
    value = weights[name]
    return value if source.third is None else np.split(value, 3)[source.third]


def _missing(file: str | Path, missing: list[Layer], unused: list[Layer]) -> str:
    some = "; ".join(f"{layer.name} with {layer.shapes}" for layer in missing[:3])
    left = "; ".join(f"{layer.name} with {layer.shapes}" for layer in unused[:3]) or "nothing"
    return (
        f"{file} has no weights for {len(missing)} layers of the model: {some}. Left over in the file: {left}. "
        f"Give a file of this model, or keep what the model has: fresh='{missing[0].name.replace('.', '/')}/**'"
    )
