"""A function on compressed parameters."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxaccel.core.interpret import Transformation, transform
from jaxaccel.core.options import checked


@checked
def compressed(
    f: Callable[..., Any], *, argnums: int | Sequence[int] = 0, strict: bool = False
) -> Callable[..., Any]:
    """`f` on parameters with compressed leaves, each computed in the way that its type knows.

    Products with a `LowRankArray` become two thinner ones; a `CodebookArray` or `QuantArray` is materialized where it
    is used (`int8` has products for the latter, and takes all types too). The result has the signature, shapes and
    dtypes of f, and is differentiable in all float leaves.

    Args:
      f: any JAX function.
      argnums: which arguments hold the parameters.
      strict: raise `UserError` where a compressed parameter had to be materialized.
    """
    return transform(f, Transformation("compressed", {}, argnums=argnums, arrays=True, strict=strict))
