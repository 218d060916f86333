"""What goes in and out of single products of a function."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.interpret import Observation, Transformation, is_compressed, transform
from jaxaccel.core.options import checked
from jaxaccel.core.sites import BILINEAR, Site
from jaxaccel.errors import UserError


@checked
def features(
    f: Callable[..., Any],
    sites: Sequence[str],
    *,
    of: Literal["output", "input"] = "output",
    argnums: int = 0,
) -> Callable[..., Any]:
    """`f` with what the products with some weights give, or take: ``(result, {path: array})``, differentiable.

    The input of a classifier's last weight is what a linear probe learns from (`jaxaccel.models.linear_probe`).

    Args:
      f: any JAX function.
      sites: paths of weights. A weight used more than once has names as `explain` shows them, ``kernel#2``.
      of: the result of the product, or the operand that is not the weight.
      argnums: which argument holds the parameters.

    Raises:
      UserError: when called, if f has no such site.
    """

    def rule(site: Site, *operands: Any) -> Any:
        dense = [x.materialize() if is_compressed(x) else x for x in operands]
        out = site.bind(*dense)
        if site.name in sites:
            site.observe(out if of == "output" else dense[1 - (site.weight or 0)])
        return out

    last = Observation(
        lambda x: jax.tree.map(lambda leaf: leaf[-1], x), lambda shape: jnp.zeros(shape.shape, shape.dtype)
    )
    observing = transform(
        f, Transformation("features", dict.fromkeys(BILINEAR, rule), argnums, arrays=True, observation=last)
    )

    def found(*args: Any, **kwargs: Any) -> Any:
        out, seen = observing(*args, **kwargs)
        if missing := [name for name in sites if name not in seen]:
            names = _names(f, argnums, args, kwargs)
            raise UserError(f"there is no product with {missing[0]}{suggest_nearest(missing[0], names)}")
        return out, seen

    return found


def _names(f: Callable[..., Any], argnums: int, args: Any, kwargs: Any) -> list[str]:
    """The sites of f."""
    seen: list[str] = []

    def rule(site: Site, *operands: Any) -> Any:
        seen.append(site.name)
        return NotImplemented

    jax.eval_shape(
        transform(f, Transformation("names", dict.fromkeys(BILINEAR, rule), argnums)), *args, **kwargs
    )
    return seen
