"""Sizes of arrays while a program is traced: numbers, or symbols in a program that is exported for any batch size."""

from typing import Any

import jax


def exceeds(size: Any, limit: Any, *, unknown: bool) -> bool:
    """Tells whether `size` is more than `limit`.

    Args:
      size: a number, or a symbolic dimension (https://docs.jax.dev/en/latest/export/shape_poly.html).
      limit: the same.
      unknown: the answer where the symbols leave it open.
    """
    try:
        return bool(size > limit)
    except jax.errors.InconclusiveDimensionOperation:
        return unknown
