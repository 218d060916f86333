"""Any number of examples, computed in batches of the few sizes that an engine was made ready for."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxaccel.deployment.signature import Arrays


def run_in_batches(
    compute: Callable[[Arrays], Mapping[str, np.ndarray]], arrays: Arrays, count: int, sizes: Sequence[int]
) -> dict[str, np.ndarray]:
    """Computes `count` examples in batches of `sizes`; the last batch is filled up with copies of its last example.

    Args:
      compute: outputs of a batch, each with an axis of examples in front.
      arrays: inputs by name.
      count: examples in `arrays`; of none, one that is all zeros is computed for the shapes of the outputs.
      sizes: ascending.
    """
    if not count:
        empty = {name: np.zeros((sizes[0], *x.shape[1:]), x.dtype) for name, x in arrays.items()}
        return {name: np.asarray(x)[:0] for name, x in compute(empty).items()}
    parts, start = [], 0
    for size in split_count(count, sizes):
        taken = min(size, count - start)
        batch = {name: _fill(x[start : start + taken], size) for name, x in arrays.items()}
        parts.append({name: np.asarray(x)[:taken] for name, x in compute(batch).items()})
        start += taken
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split_count(count: int, sizes: Sequence[int]) -> list[int]:
    """The sizes of the batches for `count` examples: as many of the largest as are full, and the least for the rest."""
    full, rest = divmod(count, sizes[-1])
    return [sizes[-1]] * full + ([next(size for size in sizes if size >= rest)] if rest else [])


def _fill(x: np.ndarray, size: int) -> np.ndarray:
    return x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
