"""What a data set gives: examples by number; no TensorFlow, no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Example = dict[str, np.ndarray]


class Source(Protocol):
    """One split of a data set with random access; it can be pickled and sent to worker processes."""

    @property
    def name(self) -> str:
        """The data set as it was asked for, e.g. ``mnist`` or ``mnist:3.0.1``."""
        ...

    @property
    def split(self) -> str:
        """The split as it was asked for, e.g. ``train[:90%]``."""
        ...

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example: Image(shape), ClassLabel(num_classes, names), ..."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example:
        """Example `index` of the split.

        An image is uint8 of shape (H, W, C), a class label int64 of shape (), a text an object array of
        shape () that holds bytes. Arrays may be read-only.
        """
        ...

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        """The examples at `indices`, read together: faster than one by one."""
        ...
