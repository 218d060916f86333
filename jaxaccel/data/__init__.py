"""Data sets with random access, the order of their examples, and the two ways to feed them.

Only `sources` is re-exported: it imports neither JAX nor TFDS until a data set is opened, so that worker
processes which read examples stay light. Import `jaxaccel.data.order`, `.resident` and `.stream` by name.
"""

from jaxaccel.data.sources import Source, open_source

__all__ = ["Source", "open_source"]
