"""Which parameters are those of several layers, one behind the other along their first axis, for a loop over them."""

import re
from collections.abc import Mapping, Sequence

from jaxaccel.core.paths import Where, selects

_NAMED = re.compile(r"(^|/)(stacked|(Scan|Vmap)\w+_\d+)/")
"""Below `jaxaccel.models.layers.scan.Scan`, and below what Linen's ``nn.scan`` and ``nn.vmap`` make of a class."""
_VECTORS = ("bias", "scale", "b", "offset", "beta", "gamma")
"""What a single layer has one of for each channel."""


def find_stacked(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The paths of parameters that are stacked, by the name of a parent or by their shapes.

    All parameters of a stack have a first axis of one size, and its biases and scales of norms have two axes: so are
    the results of ``nnx.vmap`` and ``jax.vmap`` over a constructor known, whatever they are called. A single kernel
    (layers, in, out) could as well be one of (in, heads, width), and is not found.

    Args:
      shapes: of the floating-point leaves, by path.
    """
    found = {path for path in shapes if _NAMED.search(path)}
    below: dict[str, list[str]] = {}
    for path in shapes:
        parts = path.split("/")
        for end in range(len(parts)):
            below.setdefault("/".join(parts[:end]), []).append(path)
    for paths in below.values():
        if _is_stack([(path.rpartition("/")[2], shapes[path]) for path in paths]):
            found.update(paths)
    return found


def count_stack_axes(shapes: Mapping[str, tuple[int, ...]], stacked: Where | None = None) -> dict[str, int]:
    """How many axes lie in front of those of one layer, by path: 1 in a stack, 0 elsewhere.

    Args:
      shapes: of the floating-point leaves, by path.
      stacked: which are stacks; by default those that `find_stacked` finds.
    """
    found = find_stacked(shapes) if stacked is None else {path for path in shapes if selects(stacked, path)}
    return {path: int(path in found and len(shape) > 0) for path, shape in shapes.items()}


def _is_stack(leaves: Sequence[tuple[str, tuple[int, ...]]]) -> bool:
    one_size = len({shape[:1] for _, shape in leaves}) == 1
    vectors = any(name in _VECTORS and len(shape) == 2 for name, shape in leaves)
    return one_size and vectors and any(len(shape) > 2 for _, shape in leaves)
