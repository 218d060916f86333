"""What a layer's arrays are, and how PyTorch's order of axes becomes Flax's."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

ROLES = {
    **dict.fromkeys(("weight", "kernel", "scale", "embedding", "gamma", "embeddings"), "weight"),
    **dict.fromkeys(("bias", "beta"), "bias"),
    **dict.fromkeys(("mean", "running_mean", "moving_mean"), "mean"),
    **dict.fromkeys(("var", "running_var", "moving_variance"), "var"),
}
"""What an array does in its layer, by the last part of its name."""
FUSED = ("qkv", "in_proj")
"""Names of layers whose outputs are all queries, then all keys, then all values; others mix them head by head."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """The arrays that belong together: a convolution's kernel and bias, a BatchNorm's four vectors."""

    name: str
    """What the arrays' names have in common, ``layer1.0.bn1``; of a single parameter its whole name."""
    parts: Mapping[str, tuple[str, tuple[int, ...]]]
    """By role (`ROLES`): the array's own name and its shape."""
    order: int = 0
    """Its place among the layers of the file or of the model."""
    third: int | None = None
    """Of a fused layer, which third of each array this one is."""

    @property
    def shapes(self) -> str:
        """For people: ``weight (16, 3, 3, 3), bias (16,)``."""
        return ", ".join(f"{role or 'values'} {shape}" for role, (_, shape) in self.parts.items())


def group_layers(arrays: Iterable[tuple[str, tuple[int, ...]]]) -> list[Layer]:
    """Layers of (name, shape) pairs, names with dots or slashes, in the order in which each first appears."""
    found: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, shape in arrays:
        parent, role = _parent_and_role(name.replace("/", "."))
        parts = found.setdefault(parent, {})
        if role in parts:  # two arrays of one role: each stands for itself
            found[name.replace("/", ".")] = {"": (name, tuple(shape))}
        else:
            parts[role] = (name, tuple(shape))
    return [Layer(name, parts, order) for order, (name, parts) in enumerate(found.items())]


def _parent_and_role(name: str) -> tuple[str, str]:
    parent, _, last = name.rpartition(".")
    for fused in FUSED:  # PyTorch's MultiheadAttention has in_proj_weight and in_proj_bias
        if last.startswith(f"{fused}_"):
            return f"{parent}.{fused}".strip("."), ROLES.get(last.removeprefix(f"{fused}_"), "")
    return (parent, ROLES[last]) if last in ROLES else (name, "")


def fits_layer(source: Layer, target: Layer) -> bool:
    """Whether the arrays of `source` can be those of `target`, all of them, in another order of axes."""
    if source.parts.keys() != target.parts.keys():
        # A norm's scale and a parameter that stands alone have only their shapes to tell.
        alone = len(source.parts) == len(target.parts) == 1
        return alone and _fits("", next(iter(source.parts.values())), next(iter(target.parts.values())))
    return all(_fits(role, source.parts[role], target.parts[role]) for role in target.parts)


def _fits(role: str, source: tuple[str, tuple[int, ...]], target: tuple[str, tuple[int, ...]]) -> bool:
    return find_axis_order(source[1], target[1], role, target[0]) is not None


def find_axis_order(
    source: tuple[int, ...], target: tuple[int, ...], role: str, name: str
) -> tuple[int, ...] | None:
    """The permutation of the axes of `source` after which a reshape gives `target`; None where none does.

    PyTorch has the outputs first, (out, in, ...), Flax last, (..., in, out); a kernel of several heads,
    (in, heads, out), is a matrix to PyTorch. Embeddings and all that is no kernel keep their order.
    """
    if math.prod(source) != math.prod(target):
        return None
    kernel = role == "weight" and name.replace(".", "/").rsplit("/", 1)[-1] == "kernel"
    axes = tuple(range(len(source)))
    if kernel and len(source) > 1:
        axes = (*axes[2:], 1, 0)
    permuted = [source[axis] for axis in axes]
    return axes if _same_numbers(permuted, list(target), strict=not kernel) else None


def _same_numbers(source: list[int], target: list[int], strict: bool) -> bool:
    """Whether a reshape from `source` to `target` only merges or splits neighboring axes, or drops ones."""
    if not strict and len(source) == len(target):
        return source == target
    if strict and len(source) > 1 and len(target) > 1:
        return [n for n in source if n > 1] == [n for n in target if n > 1]
    return _boundaries(source) <= _boundaries(target) or _boundaries(target) <= _boundaries(source)


def _boundaries(shape: list[int]) -> set[int]:
    """Products of the leading axes: where a reshape may cut."""
    return {math.prod(shape[:i]) for i in range(len(shape) + 1)}


def arrange_axes(value: np.ndarray, target: tuple[int, ...], role: str, name: str) -> np.ndarray:
    """`value` with its axes in the order of the array `name`, and of its shape `target`; see `find_axis_order`."""
    axes = find_axis_order(value.shape, target, role, name)
    assert axes is not None, (value.shape, target)
    return value.transpose(axes).reshape(target)


def split_fused_attention(source: Layer) -> list[Layer]:
    """The layers of queries, keys and values that a fused one holds, one behind the other; [] where it is none."""
    last = source.name.rsplit(".", 1)[-1]
    if last not in FUSED or any(shape[0] % 3 for _, shape in source.parts.values()):
        return []
    parent = source.name.removesuffix(last)
    cut = {role: (name, (shape[0] // 3, *shape[1:])) for role, (name, shape) in source.parts.items()}
    parts = enumerate(("query", "key", "value"))
    return [Layer(f"{parent}{part}", cut, source.order, third) for third, part in parts]
