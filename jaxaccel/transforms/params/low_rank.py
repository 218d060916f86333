"""Parameters as products of thinner ones: truncated singular value decompositions."""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.arrays import LowRankArray
from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.select import select_leaves
from jaxaccel.transforms.params.svd import truncated_svd

PyTree = Any
Svd = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, float]]
Form = Literal["auto", "channel", "spatial"]


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What a truncation of one weight would keep, for each rank."""

    path: str
    shape: tuple[int, ...]
    form: str
    """``channel`` (also of a matrix) or ``spatial``."""
    values: np.ndarray
    """Singular values, falling; of the weight, or of what it does to its calibration data. Of a stack of layers: the
    roots of what each rank adds to the energy that every layer keeps, not always falling."""
    total: float
    """The sum of the squares of all singular values, also of those that `values` leaves out in large weights."""
    cost: float
    """Of one rank, as a share of the dense weight: both its parameters and its multiply-adds."""

    @property
    def energy(self) -> np.ndarray:
        """The share of all squares that the first 1, 2, ... singular values hold."""
        return np.cumsum(self.values.astype(np.float64) ** 2) / max(self.total, np.finfo(np.float64).tiny)

    @property
    def stable_rank(self) -> float:
        """The sum of the squares over the largest (Rudelson & Vershynin 2007): a rank that noise cannot raise."""
        return self.total / max(float(self.values[0]) ** 2, np.finfo(np.float64).tiny)

    def rank_of(self, energy: float) -> int:
        """The least rank that keeps so much; one more than there are `values` where they do not."""
        return int(np.searchsorted(self.energy, energy * (1 - 1e-7)) + 1)

    @property
    def worthwhile(self) -> int:
        """The largest rank at which the factors are smaller than the dense weight."""
        return int(np.ceil(1 / self.cost)) - 1


@checked
def low_rank(
    params: PyTree,
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    flops: float | None = None,
    where: Where = "**/kernel",
    form: Form = "auto",
    work: Mapping[str, float] | None = None,
    covariances: Mapping[str, jax.Array] | None = None,
    stacked: Where | None = None,
) -> PyTree:
    """`params` with the weights that `where` selects as `LowRankArray`s, where that makes them smaller.

    A matrix, or a kernel as a matrix from all its inputs to its outputs (``channel``), or from its rows to its columns
    (``spatial``), is cut to its largest singular values, which is the nearest there is of that rank. Weights for which
    the rank leaves nothing to gain stay dense. Each layer of a stack that a loop runs over has factors of its own, all
    of one rank: that which the worst of them needs.

    Args:
      params: any pytree of arrays: matrices (in, out), kernels (H, W, in, out), or with heads (in, heads, width).
      rank: of all, or of each by path; those that it does not name stay dense.
      energy: the share of the squares of the singular values to keep, in (0, 1].
      flops: the share of the selected weights' multiply-adds that shall be left. Ranks are chosen together, so that the
        energy lost, summed over the weights, is least. Weights with more than `svd.LARGE` rows and columns get ranks
        up to half of that, or stay dense.
      where: which leaves, by path or predicate.
      form: of kernels wider than 1x1: ``auto`` takes what keeps more for the same cost.
      work: for `flops`: multiply-adds of each weight by path, from `ja.params.count_multiply_adds`; without it
        parameters are counted.
      covariances: by path, what `ja.transforms.input_covariances` found: the error is then least on such inputs and not
        on all (Wang et al. 2024, arXiv:2403.07378). Only the form ``channel``. A stack has one for all its layers.
      stacked: which leaves hold those of several layers along their first axis; by default as for `quantize`.

    Raises:
      UserError: not exactly one of `rank`, `energy` and `flops` is given, it is out of range, `where` selects
        nothing, or `rank` names what it does not select.
    """
    _check(rank, energy, flops, form)
    chosen = select_leaves(params, where, at_least=2, stacked=stacked)
    ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(chosen, rank or 0)
    chosen.check_names(ranks, "rank")
    options = {
        path: _of_layers(
            path, x, chosen.stack_axes[path], form, (covariances or {}).get(path), ranks[path], energy or 0.0
        )
        for path, x in chosen.items()
        if path in ranks
    }
    if flops is not None:
        weigh = {path: float(x.size) for path, x in chosen.items()}
        if work is not None:
            if missing := [path for path in chosen if path not in work]:
                raise UserError(
                    f"work has nothing of {missing[0]}, no weight of a product: leave it out with where"
                )
            weigh = {path: float(work[path]) for path in chosen}
        layers = {path: x.shape[0] if chosen.stack_axes[path] else 1 for path, x in chosen.items()}
        picks = _within(flops, options, weigh, layers)
    else:
        picks = {path: _pick(found, ranks[path], energy) for path, found in options.items()}
    arrays = {path: None if pick is None else pick[0].cut(pick[1]) for path, pick in picks.items()}
    return chosen.replaced({path: array for path, array in arrays.items() if array is not None})


@checked
def spectra(params: PyTree, where: Where = "**/kernel", form: Form = "auto") -> list[Spectrum]:
    """What truncation would keep of each weight that `where` selects, largest weights first."""
    chosen = select_leaves(params, where, at_least=2)
    found = [
        d.spectrum for path, x in chosen.items() for d in _of_layers(path, x, chosen.stack_axes[path], form)
    ]
    return sorted(found, key=lambda s: -np.prod(s.shape))


@dataclasses.dataclass(frozen=True)
class _Decomposition:
    """A weight as ``left @ diag(values) @ right``, and how its parts become factors of its shape."""

    spectrum: Spectrum
    cut: Callable[[int], LowRankArray]


def _of_layers(path: str, x: jax.Array, stack_axes: int, form: Form, *more: Any) -> list[_Decomposition]:
    """Those of a weight, or of all layers of a stack together."""
    if not stack_axes:
        return _decomposed(path, x, form, *more)
    layers = [_decomposed(path, w, form, *more) for w in x]
    return [_stacked(x.shape, same_form) for same_form in zip(*layers, strict=True)]


def _stacked(shape: tuple[int, ...], layers: Sequence[_Decomposition]) -> _Decomposition:
    """The decompositions of all layers at one rank; its spectrum is that of the layer that loses most at each rank."""
    spectra = [layer.spectrum for layer in layers]
    count = min(len(spectrum.values) for spectrum in spectra)
    least = np.min([spectrum.energy[:count] for spectrum in spectra], 0)
    values = np.sqrt(np.maximum(np.diff(least, prepend=0.0), 0.0))

    def cut(rank: int) -> LowRankArray:
        cuts = [layer.cut(rank) for layer in layers]
        return dataclasses.replace(jax.tree.map(lambda *parts: jnp.stack(parts), *cuts), stacked=True)

    return _Decomposition(dataclasses.replace(spectra[0], shape=shape, values=values, total=1.0), cut)


def _decomposed(
    path: str, x: jax.Array, form: Form, covariance: Any = None, rank: int = 0, energy: float = 0.0
) -> list[_Decomposition]:
    """Those that `form` allows, with singular values for at least that rank and that energy where both can gain."""
    w = np.asarray(x, np.float32)
    kernel = w.ndim == 4 and max(w.shape[:2]) > 1
    forms = ["channel"]
    if kernel and covariance is None and form != "channel" and min(w.shape[:2]) > 1:
        forms = ["channel", "spatial"] if form == "auto" else ["spatial"]
    svd = functools.partial(truncated_svd, rank=rank, energy=energy)
    return [
        _spatial(path, w, x, svd) if name == "spatial" else _channel(path, w, x, covariance, svd)
        for name in forms
    ]


def _channel(path: str, w: np.ndarray, x: jax.Array, covariance: Any, svd: Svd) -> _Decomposition:
    # (D, heads, width) has its inputs first, (heads, width, D) its outputs last: the more even cut is the right one.
    at = w.ndim - 1
    if covariance is not None:  # it says which axes are inputs
        at = next((i for i in range(1, w.ndim) if np.prod(w.shape[:i]) == len(covariance)), at)
    elif w.ndim == 3:
        at = min((1, 2), key=lambda i: abs(np.log(np.prod(w.shape[:i]) / np.prod(w.shape[i:]))))
    lead, trail = w.shape[:at], w.shape[at:]
    matrix = w.reshape(int(np.prod(lead)), int(np.prod(trail)))
    root = None if covariance is None else _root(np.asarray(covariance, np.float64), path, matrix.shape[0])
    u, s, v, total = svd(matrix if root is None else (root @ matrix).astype(np.float32))

    def cut(rank: int) -> LowRankArray:
        left, right = u[:, :rank] * np.sqrt(s[:rank]), np.sqrt(s[:rank])[:, None] * v[:rank]
        if root is not None:
            left = np.linalg.solve(root, left.astype(np.float64)).astype(np.float32)
        return LowRankArray(
            jnp.asarray(left.reshape(*lead, rank), x.dtype), jnp.asarray(right.reshape(rank, *trail), x.dtype),
            real=jnp.dtype(x.dtype).name,
        )  # fmt: skip

    rows, columns = matrix.shape
    cost = (rows + columns) / (rows * columns)
    return _Decomposition(Spectrum(path, w.shape, "channel", s, total, cost), cut)


def _spatial(path: str, w: np.ndarray, x: jax.Array, svd: Svd) -> _Decomposition:
    height, width, inputs, outputs = w.shape
    matrix = w.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)
    u, s, v, total = svd(matrix)

    def cut(rank: int) -> LowRankArray:
        left, right = u[:, :rank] * np.sqrt(s[:rank]), np.sqrt(s[:rank])[:, None] * v[:rank]
        return LowRankArray(
            jnp.asarray(left.reshape(height, inputs, rank), x.dtype),
            jnp.asarray(right.reshape(rank, width, outputs), x.dtype),
            axes=(0, 2, 1, 3), real=jnp.dtype(x.dtype).name,
        )  # fmt: skip

    rows, columns = matrix.shape
    cost = (rows + columns) / (rows * columns)
    return _Decomposition(Spectrum(path, w.shape, "spatial", s, total, cost), cut)


def _root(covariance: np.ndarray, path: str, inputs: int) -> np.ndarray:
    """An upper triangle R with R^T R = C, which a little of the mean variance keeps regular."""
    if covariance.shape != (inputs, inputs):
        raise UserError(f"the covariance of {path} must be {(inputs, inputs)}, got {covariance.shape}")
    jitter = 1e-6 * (np.trace(covariance) / inputs or 1.0)
    return np.linalg.cholesky(covariance + jitter * np.eye(inputs)).T


def _pick(found: list[_Decomposition], rank: int, energy: float | None) -> tuple[_Decomposition, int] | None:
    """The cheapest decomposition of those of one weight, and its rank; None where dense is cheaper."""
    ranks = [rank if energy is None else d.spectrum.rank_of(energy) for d in found]
    pairs = [
        (d, r)
        for d, r in zip(found, ranks, strict=True)
        if r <= min(d.spectrum.worthwhile, len(d.spectrum.values))
    ]
    if energy is not None:
        return min(pairs, key=lambda pair: pair[1] * pair[0].spectrum.cost, default=None)
    return max(pairs, key=lambda pair: pair[0].spectrum.energy[pair[1] - 1], default=None)


def _within(
    flops: float,
    options: Mapping[str, list[_Decomposition]],
    work: Mapping[str, float],
    layers: Mapping[str, int],
) -> dict[str, tuple[_Decomposition, int] | None]:
    """For each weight the choice that loses least energy, all together within a share of the work.

    A price of work is found by bisection; at a price each weight decides for itself (Lagrange's multipliers).
    """
    total = sum(work.values())

    def at(price: float) -> dict[str, tuple[_Decomposition, int] | None]:
        return {
            path: _at_price(found, price * work[path] / layers[path] / total)
            for path, found in options.items()
        }

    def spent(picks: dict[str, Any]) -> float:
        shares = {p: 1.0 if pick is None else pick[1] * pick[0].spectrum.cost for p, pick in picks.items()}
        return sum(work[path] * share for path, share in shares.items()) / total

    low, high = 0.0, 1.0
    while spent(at(high)) > flops:
        low, high = high, 4 * high
        if high > 1e12:
            least = spent(at(high))
            raise UserError(
                f"flops={flops:g} cannot be: already ranks of 1 need {least:.2g} of the selected weights' work"
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(at(middle)) > flops else (low, middle)
    return at(high)


def _at_price(found: list[_Decomposition], price: float) -> tuple[_Decomposition, int] | None:
    best, value = None, 1.0 - price  # dense: all of the energy, all of the work
    for decomposition in found:
        spectrum = decomposition.spectrum
        ranks = np.arange(1, min(spectrum.worthwhile, len(spectrum.values)) + 1)
        if len(ranks):
            values = spectrum.energy[ranks - 1] - price * spectrum.cost * ranks
            if values.max() > value:
                best, value = (decomposition, int(ranks[values.argmax()])), values.max()
    return best


def _check(rank: Any, energy: float | None, flops: float | None, form: str) -> None:
    if sum(x is not None for x in (rank, energy, flops)) != 1:
        raise UserError("low_rank needs exactly one of rank=, energy= and flops=")
    for path, each in rank.items() if isinstance(rank, Mapping) else [("", 1 if rank is None else rank)]:
        if not isinstance(each, numbers.Integral) or each < 1:
            of = f" of {path}" if path else ""
            raise UserError(f"rank{of} must be a whole number of at least 1, got {each}")
    for name, share in (("energy", energy), ("flops", flops)):
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name} is a share, in (0, 1], got {share:g}")
    if form not in ("auto", "channel", "spatial"):
        raise UserError(f"form must be auto, channel or spatial, got {form!r}")
