"""Data sets with random access, the order of their examples, and how examples are augmented.

Only what imports neither JAX nor TFDS until a data set is opened is re-exported, so that worker processes which
read examples stay light. Import `jaxaccel.data.order` and `jaxaccel.data.augment` by name.
"""

from jaxaccel.data.arrays import from_arrays
from jaxaccel.data.opening import open_source
from jaxaccel.data.sources import Source

__all__ = ["Source", "from_arrays", "open_source"]
