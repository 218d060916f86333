"""A whole split, read and decoded once, to live on the device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxaccel.data.examples import Element, Item, read_elements
from jaxaccel.data.source import Source

READ_EXAMPLES = 512


def size_in_bytes(source: Source, element: Element) -> int:
    """What `load` would hold, judged by the first example."""
    return len(source) * sum(array.nbytes for array in element(source[0]).values())


def describe(source: Source, element: Element) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what `load` gives once they are on a device, judged by the first example."""
    first = element(source[0])
    return {
        name: jax.ShapeDtypeStruct((len(source), *x.shape), jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in first.items()
    }


def load(source: Source, element: Element, advance: Callable[[int], Any] = lambda n: None) -> Item:
    """All examples, stacked: arrays of shape (len(source), ...). `advance(n)` is told of every n read.

    Raises:
      UserError: an example cannot be read, or has a label that is no class.
    """
    stacked: Item = {}
    for start in range(0, len(source), READ_EXAMPLES):
        indices = range(start, min(start + READ_EXAMPLES, len(source)))
        for i, arrays in zip(indices, read_elements(source, element, indices), strict=True):
            for name, array in arrays.items():
                if name not in stacked:
                    stacked[name] = np.empty((len(source), *array.shape), array.dtype)
                stacked[name][i] = array
        advance(len(indices))
    return stacked
