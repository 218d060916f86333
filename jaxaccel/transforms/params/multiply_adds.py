"""How much arithmetic each weight of a function takes part in."""

import collections
from collections.abc import Callable
from typing import Any

import jax

from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.interpret import Transformation, transform
from jaxaccel.core.interpret.compressed import ARRAY_RULES
from jaxaccel.core.sites import BILINEAR, SITES, Site, record_runs

PyTree = Any


def count_multiply_adds(f: Callable[..., Any], params: PyTree, *args: Any) -> dict[str, int]:
    """Multiply-adds of each weight of ``f(params, *args)``, by path; products of two activations are under an empty
    path.

    Of one call, from shapes alone: nothing is computed. Loops count as often as they run; one whose length is only
    known as it runs counts once. Low-rank weights count as the two products that they are, together, or, where
    they have to be materialized, as the dense one.

    Args:
      f: any JAX function.
      params: its parameters: arrays, shapes, or compressed ones.
      args: the rest: arrays or shapes.
    """

    def rule(site: Site, *operands: Any) -> Any:
        if any(isinstance(x, LowRankArray) for x in operands):
            two = ARRAY_RULES[LowRankArray].get(site.primitive)
            if two is not None and (out := two(site, *operands)) is not NotImplemented:
                return out  # its two products are counted
        site.record("-", str(site.inputs[0].dtype))
        return NotImplemented

    counted = transform(f, Transformation("count", dict.fromkeys(SITES, rule), arrays=True))
    with record_runs() as runs:
        jax.eval_shape(counted, params, *args)
    found: dict[str, int] = collections.defaultdict(int)
    for record in runs[-1].records:
        if record.kind == "site" and record.primitive in BILINEAR:
            path = record.path or ""
            whole = path.rpartition("/")[0] if path.rsplit("/", 1)[-1] in ("left", "right") else path
            found[whole] += record.flops // 2 * (record.trips or 1)
    return dict(found)
