"""Static activation ranges, from a look at some batches."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core import files, numerics
from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.formats.bounds import check, explain_errors, read_json
from jaxaccel.core.interpret import Observation, Transformation, is_compressed, transform
from jaxaccel.core.options import checked
from jaxaccel.core.sites import BILINEAR, Site
from jaxaccel.errors import UserError

PyTree = Any
Method = Literal["absmax", "percentile", "mse", "entropy"]
BINS = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration:
    """The largest magnitude that each site's activations may have; a pytree of float32 scalars."""

    ranges: Mapping[str, Any]
    """By site name, as `explain` shows it."""

    def range_of(self, site: str) -> Any:
        """The range of `site`.

        A method of a model uses a parameter less often than a call does, so that its uses (``kernel``, ``kernel#2``)
        count otherwise. One that was not seen has the largest range of those that were: it clips nothing.

        Raises:
          UserError: the parameter has none.
        """
        if site in self.ranges:
            return self.ranges[site]
        uses = [x for name, x in self.ranges.items() if _parameter_of(name) == _parameter_of(site)]
        if not uses:
            raise UserError(
                f"the calibration has no range for {site}{suggest_nearest(site, dict(self.ranges))}; "
                "calibrate this function"
            )
        # NumPy's maximum of NumPy's numbers, because jax.numpy's would be traced, and no longer known.
        known = all(isinstance(x, (float, np.generic, np.ndarray)) for x in uses)
        return reduce(np.maximum if known else jnp.maximum, uses)

    def save(self, path: Path | str) -> None:
        """Writes it as JSON."""
        files.write_text(Path(path), json.dumps({k: float(v) for k, v in self.ranges.items()}, indent=2))

    @classmethod
    def load(cls, path: Path | str) -> "Calibration":
        """Reads what `save` wrote.

        Raises:
          UserError: the file is missing or is none.
        """
        with explain_errors(Path(path), "holds no calibration"):
            ranges = read_json(Path(path))
            check(isinstance(ranges, dict), "no ranges by site")
            numbers = all(type(v) in (int, float) and 0 <= v < float("inf") for v in ranges.values())
            check(numbers, "a range that is no finite number of at least 0")
            return cls({name: np.float32(value) for name, value in ranges.items()})


@checked
def calibrate(
    f: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    method: Method = "absmax",
    percentile: float = 99.99,
    argnums: int | Sequence[int] = 0,
) -> Calibration:
    """Activation ranges of every product of f with a parameter, for `int8(f, calibration=...)`.

    Args:
      f: the function, called as ``f(params, *batch)``.
      params: its parameters, quantized or not.
      batches: each a tuple of further arguments, or a single one. A few hundred examples do.
      method: ``absmax`` takes the largest magnitude seen; ``percentile`` clips the rarest; ``mse`` clips where the
        squared error is least; ``entropy`` where the histogram of the clipped and rounded values diverges least from
        the original one (Migacz 2017, "8-bit inference with TensorRT"; Wu et al. 2020, arXiv:2004.09602, section 3.3).
      percentile: for that method, the share of magnitudes that is kept, in percent.
      argnums: which arguments hold the parameters; all but the first are then among the batch.

    Raises:
      UserError: there are no batches, f has no product with a parameter, or values are not finite.
    """
    if method not in ("absmax", "percentile", "mse", "entropy"):
        raise UserError(f"method must be absmax, percentile, mse or entropy, got {method!r}")
    calls = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not calls:
        raise UserError("calibrate needs at least one batch")
    observe = compile_observer(_observing(f, _largest, argnums))
    seen = [observe(params, *call) for call in calls]
    # NumPy's maximum is NaN where one is; Python's may be any of them.
    largest = {name: float(np.max([s[name] for s in seen])) for name in seen[0]}
    if not largest:
        raise UserError(
            "f multiplies no parameter: nothing to calibrate (argnums says which arguments hold them)"
        )
    broken = [name for name, value in largest.items() if not np.isfinite(value)]
    if broken:
        raise UserError(f"activations before {broken[0]} are not finite; calibrate a function that works")
    if method == "absmax":
        return Calibration({name: np.float32(value) for name, value in largest.items()})
    tops = {name: max(value, numerics.TINY) for name, value in largest.items()}
    histogram = compile_observer(_observing(f, _counts(tops), argnums))
    counts = {name: np.zeros(BINS) for name in tops}
    for call in calls:
        for name, more in histogram(params, *call).items():
            counts[name] += np.asarray(more)
    choose = {"percentile": lambda c: _percentile(c, percentile), "mse": _mse, "entropy": _entropy}[method]
    return Calibration({name: np.float32(tops[name] * choose(counts[name]) / BINS) for name in tops})


def _parameter_of(site: str) -> str:
    """The name of a site without the number of the use."""
    return site.partition("#")[0]


def _observing(
    f: Callable[..., Any], measure: Callable[[Site, jax.Array], jax.Array], argnums: int | Sequence[int]
) -> Callable[..., Any]:
    """f -> (result, measures by site) of the other operand of every product with a parameter."""

    def rule(site: Site, lhs: Any, rhs: Any) -> Any:
        if any(isinstance(x, LowRankArray) for x in (lhs, rhs)):
            return NotImplemented  # two products, each with a range of its own
        dense = [x.materialize() if is_compressed(x) else x for x in (lhs, rhs)]
        if site.weight is not None and jnp.issubdtype(dense[1 - site.weight].dtype, jnp.floating):
            site.observe(measure(site, dense[1 - site.weight]))
        return site.bind(*dense)

    rules = {**dict.fromkeys(BILINEAR, rule), "gather": lambda site, *_: NotImplemented}
    joined = Observation(lambda x: _reduced(x), lambda shape: jnp.zeros(shape.shape, shape.dtype))
    return transform(
        f, Transformation("calibrate", rules, argnums, arrays=True, primal_only=True, observation=joined)
    )


def compile_observer(observing: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """What `observing` observes, compiled; leaves that are no arrays (functions of a module, say) are constants."""

    @partial(jax.jit, static_argnums=1)
    def observed(arrays: list[Any], rest: tuple[Any, tuple[Any, ...]]) -> Any:
        tree, others = rest
        leaves = [b if a is None else a for a, b in zip(arrays, others, strict=True)]
        return observing(*jax.tree.unflatten(tree, leaves))[1]

    def call(*args: Any) -> dict[str, Any]:
        leaves, tree = jax.tree.flatten(args)
        is_array = [isinstance(x, (jax.Array, np.ndarray, np.generic)) for x in leaves]
        arrays = [x if a else None for x, a in zip(leaves, is_array, strict=True)]
        others = tuple(None if a else x for x, a in zip(leaves, is_array, strict=True))
        return observed(arrays, (tree, others))

    return call


def _reduced(x: jax.Array) -> jax.Array:
    """Over a leading axis: the largest of scalars, the sum of histograms."""
    return jnp.max(x, 0) if x.ndim == 1 else jnp.sum(x, 0)


def _largest(site: Site, x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0).astype(jnp.float32)


def _counts(tops: Mapping[str, float]) -> Callable[[Site, jax.Array], jax.Array]:
    def measure(site: Site, x: jax.Array) -> jax.Array:
        # In float32, since bfloat16 has no 2,047, and float16 ends below what small activations are multiplied by.
        share = jnp.abs(x.astype(jnp.float32)) / tops[site.name]
        bins = jnp.minimum((share * BINS).astype(jnp.int32), BINS - 1)
        return jnp.zeros(BINS, jnp.int32).at[bins.ravel()].add(1)

    return measure


def _percentile(counts: np.ndarray, percentile: float) -> float:
    """How many bins hold `percentile` of the magnitudes."""
    kept = np.searchsorted(np.cumsum(counts), percentile / 100 * counts.sum())
    return float(min(kept + 1, BINS))


def _mse(counts: np.ndarray) -> float:
    """The number of bins to keep at which rounding and clipping cost least in squares."""
    centers = np.arange(BINS) + 0.5
    tops = np.arange(BINS // 8, BINS + 1, 8)
    scale = tops / numerics.qmax(8)
    rounded = np.clip(np.round(centers / scale[:, None]), 0, numerics.qmax(8)) * scale[:, None]
    return float(tops[np.argmin(((rounded - centers) ** 2 * counts).sum(1))])


def _entropy(counts: np.ndarray) -> float:
    """The number of bins to keep at which the Kullback-Leibler divergence is least."""
    levels = numerics.qmax(8) + 1
    counts = counts.copy()
    counts[0] = counts[1]  # zeros, which are exact at any scale, would drown the rest after a ReLU
    best = (np.inf, BINS)
    for top in range(levels, BINS + 1, 8):
        p = counts[:top].copy()
        p[-1] += counts[top:].sum()
        group = np.arange(top) * levels // top
        filled = counts[:top] > 0
        totals = np.bincount(group, counts[:top], levels)
        occupied = np.bincount(group, filled, levels)
        q = np.where(filled, (totals / np.maximum(occupied, 1))[group], 0)
        p, q = _smooth(p), _smooth(q)
        best = min(best, (float((p * np.log(p / q)).sum()), top))
    return float(best[1])


def _smooth(counts: np.ndarray, floor: float = 1e-6) -> np.ndarray:
    """A distribution without zeros."""
    share = counts / max(counts.sum(), 1) + floor
    return share / share.sum()
