"""Which parameters to keep: masks of zeros and ones, by size, by what the loss says, or at random."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core.options import checked
from jaxaccel.core.paths import Where
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.select import Selected, select_leaves

PyTree = Any
Scope = Literal["layer", "global", "erk"]
Criterion = Literal["magnitude", "taylor", "random", "wanda"]
KERNELS = "**/kernel"
"""What is pruned by default: weights of products, and neither biases nor the scales of norms."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which weights stand or fall together. Of a weight's axes the last is outputs, the one before it inputs."""

    keep: int = 0
    """Of every `of` neighbors along the inputs this many stay; 0: any."""
    of: int = 0
    block: tuple[int, int] = (1, 1)
    """Inputs and outputs of a block that is kept or removed whole."""

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """``unstructured``, ``2:4`` (any n:m), ``block`` (4x4) or ``block:8x1``.

        Raises:
          UserError: it is none of these.
        """
        if text == "unstructured":
            return cls()
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            keep, of = int(found[1]), int(found[2])
            if 0 < keep < of:
                return cls(keep, of)
        if found := re.fullmatch(r"block(?::(\d+)x(\d+))?", text):
            rows, columns = (int(n) for n in found.groups(default="4"))
            if rows and columns:
                return cls(block=(rows, columns))
        raise UserError(
            f"pattern must be unstructured, n:m with 0 < n < m (2:4), block or block:RxC, got {text!r}"
        )


@checked
def prune(
    params: PyTree,
    sparsity: float | jax.Array | Mapping[str, float | jax.Array] | None = None,
    pattern: str = "unstructured",
    scope: Scope = "layer",
    criterion: Criterion = "magnitude",
    where: Where = KERNELS,
    *,
    grads: PyTree = None,
    norms: Mapping[str, jax.Array] | None = None,
    key: jax.Array | None = None,
    stacked: Where | None = None,
) -> PyTree:
    """Masks that keep the most important of the weights that `where` selects; `masked` applies them.

    Counts are exact, also among equal scores. May be called inside ``jit``. Each layer of a stack that a loop runs
    over is pruned as if it stood alone.

    Args:
      params: any pytree of arrays.
      sparsity: the share of the selected weights to remove, in [0, 1), may be traced; or a share for each layer, by
        path. An n:m pattern decides it: leave it out there.
      pattern: `Pattern.parse` says which there are. n:m and blocks run along the last two axes, inputs and outputs.
      scope: whether each ``layer`` loses that share, or all together (``global``: the least important wherever they
        are), or each as many as its shape says (``erk``: Erdős-Rényi-kernel, Evci et al. 2020, arXiv:1911.11134, which
        spares small layers).
      criterion: ``magnitude``; ``taylor``, the change of the loss to first order (w g)^2 (Molchanov et al. 2019,
        arXiv:1906.10771), which needs `grads`; ``wanda``, |w| times the norm of its input (Sun et al. 2023,
        arXiv:2306.11695), which needs `norms`; or ``random``, which needs `key`.
      where: which leaves, by path or predicate.
      grads: gradients of the loss, a pytree like `params`.
      norms: for each selected path, the norm of its inputs (inputs,), from `input_norms`; a stack has one for all its
        layers.
      key: of the random numbers.
      stacked: which leaves hold those of several layers along their first axis; by default as for `quantize`.

    Returns:
      A pytree like `params` of boolean arrays, True where a weight is kept; None for leaves not selected.

    Raises:
      UserError: `where` selects nothing, the sparsity lies outside of [0, 1), contradicts the pattern or names what
        is not selected, the pattern does not divide a leaf, or what the criterion needs is missing or does not fit.
    """
    form = Pattern.parse(pattern)
    _check(sparsity, form, scope, criterion, grads, norms, key)
    chosen = select_leaves(params, where, at_least=2, stacked=stacked)
    for path, x in chosen.items():
        _check_divides(path, jnp.shape(x), form, pattern)
    if isinstance(sparsity, Mapping):
        chosen.check_names(sparsity, "sparsity")
        if missing := chosen.keys() - sparsity.keys():
            raise UserError(
                f"sparsity has no share for {', '.join(sorted(missing)[:3])}: give one for each layer"
            )
    slopes = select_leaves(grads, where, at_least=2, stacked=stacked) if grads is not None else {}
    scores = {
        path: _grouped(_score(path, x, chosen.stack_axes[path], criterion, slopes, norms, key, i), form)
        for i, (path, x) in enumerate(chosen.items())
    }
    kept = _kept(scores, chosen, sparsity, form, scope)
    masks = {path: _spread(kept[path], jnp.shape(x), form) for path, x in chosen.items()}
    return chosen.replaced(masks, None)


def masked(params: PyTree, masks: PyTree) -> PyTree:
    """`params` with zeros where `masks` (from `prune`) are False; leaves whose mask is None stay."""
    return jax.tree.map(
        lambda mask, x: x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype)),
        masks, params, is_leaf=lambda x: x is None,
    )  # fmt: skip


def layer_densities(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """The share of weights that each layer keeps under Erdős-Rényi-kernel budgets (Evci et al. 2020, appendix).

    In proportion to (sum of its sizes) / (product of its sizes), and never above 1: what full layers cannot take goes
    to the others.

    Args:
      shapes: of the weights, by name.
      sparsity: of all together, in [0, 1).
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        left = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in full)
        factor = left / sum(raw[name] * sizes[name] for name in free) if free else 0.0
        over = [name for name in free if raw[name] * factor > 1]
        if not over:
            return {name: 1.0 if name in full else raw[name] * factor for name in shapes}
        full.update(over)


def shares_by_shape(chosen: Selected, sparsity: float) -> dict[str, float]:
    """The share of weights that each layer loses, by path, where it keeps its part of `layer_densities`."""
    shapes = {path: jnp.shape(x) for path, x in chosen.items()}
    counts = {path: shapes[path][0] if axes else 1 for path, axes in chosen.stack_axes.items()}
    layers = {
        f"{path} {i}": shapes[path][chosen.stack_axes[path] :] for path in shapes for i in range(counts[path])
    }
    kept = layer_densities(layers, sparsity)
    return {path: 1 - kept[f"{path} 0"] for path in shapes}


def sparsity_of(params: PyTree, where: Where = KERNELS) -> float:
    """The share of zeros among the leaves that `where` selects."""
    chosen = select_leaves(params, where, at_least=2).values()
    return 1 - sum(int(jnp.count_nonzero(x)) for x in chosen) / sum(x.size for x in chosen)


def _check(
    sparsity: Any, form: Pattern, scope: str, criterion: str, grads: Any, norms: Any, key: Any
) -> None:
    if scope not in ("layer", "global", "erk"):
        raise UserError(f"scope must be layer, global or erk, got {scope!r}")
    needed = {
        "magnitude": True,
        "taylor": grads is not None,
        "wanda": norms is not None,
        "random": key is not None,
    }
    if criterion not in needed:
        raise UserError(f"criterion must be one of {', '.join(needed)}, got {criterion!r}")
    if not needed[criterion]:
        missing = {"taylor": "grads=", "wanda": "norms=ja.transforms.input_norms(...)", "random": "key="}[
            criterion
        ]
        raise UserError(f"criterion={criterion!r} needs {missing}")
    if isinstance(sparsity, jax.Array) and scope == "erk":
        raise UserError("scope='erk' needs a sparsity that is a number, or one a layer from densities()")
    if sparsity is None and not form.of:
        raise UserError("sparsity is missing: the share of the weights to remove, 0.8 for instance")
    for path, share in sparsity.items() if isinstance(sparsity, Mapping) else [("", sparsity)]:
        if share is not None and not isinstance(share, jax.Array):
            _check_share(share, form, f" of {path}" if path else "")


def _check_share(share: float, form: Pattern, of: str) -> None:
    if form.of and abs(share - (1 - form.keep / form.of)) > 1e-6:
        raise UserError(
            f"pattern {form.keep}:{form.of} is a sparsity{of} of {1 - form.keep / form.of:g}, not {share:g}: leave "
            "sparsity out"
        )
    if not 0 <= share < 1:
        raise UserError(f"sparsity{of} must lie in [0, 1), got {share:g}: 0.8 removes four of five weights")


def _check_divides(path: str, shape: tuple[int, ...], form: Pattern, pattern: str) -> None:
    inputs, outputs = shape[-2:]
    rows, columns = (form.of, 1) if form.of else form.block
    if inputs % rows or outputs % columns:
        raise UserError(
            f"pattern {pattern} does not divide {path} with {inputs} inputs and {outputs} outputs: leave it out with "
            "where, or choose another pattern"
        )


def _score(
    path: str,
    x: jax.Array,
    stack_axes: int,
    criterion: str,
    grads: Mapping[str, jax.Array],
    norms: Any,
    key: Any,
    number: int,
) -> jax.Array:
    """How much each weight matters, float32 of the shape of `x`."""
    x = x.astype(jnp.float32)
    if criterion == "taylor":
        return (x * grads[path].astype(jnp.float32)) ** 2
    if criterion == "wanda":
        if path not in norms:
            raise UserError(
                f"norms has none of {path}: it is no weight of a product; leave it out with where"
            )
        return jnp.abs(x) * _along_inputs(norms[path], x.shape[stack_axes:], path)
    if criterion == "random":
        return jax.random.uniform(jax.random.fold_in(key, number), x.shape, jnp.float32)
    return jnp.abs(x)


def _along_inputs(norms: jax.Array, shape: tuple[int, ...], path: str) -> jax.Array:
    """`norms` (inputs,) with axes of size 1 beside those of a weight of `shape` that are its inputs.

    They are neighbors before the outputs: next to last in (H, W, in, out), the first in (D, heads, width), two in
    (heads, width, D).
    """
    for stop in range(len(shape) - 1, 0, -1):
        for start in range(stop - 1, -1, -1):
            if math.prod(shape[start:stop]) == norms.size:
                return norms.reshape(*shape[start:stop], *[1] * (len(shape) - stop))
    raise UserError(
        f"norms of {path} are those of {norms.size} inputs, which a weight of shape {shape} does not have: take "
        "ja.transforms.input_norms of the same parameters"
    )


def _grouped(scores: jax.Array, form: Pattern) -> jax.Array:
    """Scores of what stands or falls as one: of single weights, or sums over blocks."""
    rows, columns = form.block
    if (rows, columns) == (1, 1):
        return scores
    *rest, inputs, outputs = scores.shape
    return scores.reshape(*rest, inputs // rows, rows, outputs // columns, columns).sum((-3, -1))


def _spread(kept: jax.Array, shape: tuple[int, ...], form: Pattern) -> jax.Array:
    rows, columns = form.block
    return jnp.repeat(jnp.repeat(kept, rows, -2), columns, -1).reshape(shape)


def _kept(
    scores: Mapping[str, jax.Array], params: Selected, sparsity: Any, form: Pattern, scope: str
) -> dict[str, jax.Array]:
    if form.of:
        return {path: _best_of_each(score, form) for path, score in scores.items()}
    if scope == "global" and not isinstance(sparsity, Mapping):
        together = jnp.concatenate([score.ravel() for score in scores.values()])
        flags = mark_largest(together, _count(together.size, sparsity))
        cuts = [sum(s.size for s in list(scores.values())[:i]) for i in range(1, len(scores))]
        parts = jnp.split(flags, cuts)
        return {p: part.reshape(s.shape) for (p, s), part in zip(scores.items(), parts, strict=True)}
    if isinstance(sparsity, Mapping):
        shares = sparsity
    elif scope == "erk":
        shares = shares_by_shape(params, sparsity)
    else:
        shares = dict.fromkeys(scores, sparsity)
    return {path: _best_share(x, shares[path], params.stack_axes[path]) for path, x in scores.items()}


def _best_share(scores: jax.Array, sparsity: Any, stack_axes: int) -> jax.Array:
    """True for the largest of `scores`, of each layer those that `sparsity` leaves."""

    def of_layer(scores: jax.Array) -> jax.Array:
        return mark_largest(scores, _count(scores.size, sparsity))

    return jax.vmap(of_layer)(scores) if stack_axes else of_layer(scores)


def _count(size: int, sparsity: Any) -> jax.Array:
    """How many of `size` stay."""
    return jnp.round(size * (1 - jnp.asarray(sparsity, jnp.float32))).astype(jnp.int32)


def mark_largest(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """True for the `count` largest of `scores`, of which equal ones count in order; `count` may be traced."""
    # One sort of the values: ranks would take two, with their positions, and several times as long.
    flat = scores.ravel()
    least = jnp.sort(flat)[jnp.clip(flat.size - count, 0, flat.size - 1)]
    above, ties = flat > least, flat == least
    return (above | (ties & (jnp.cumsum(ties) <= count - above.sum()))).reshape(scores.shape)


def _best_of_each(scores: jax.Array, form: Pattern) -> jax.Array:
    """True for the `keep` largest of every `of` neighbors along the inputs."""
    *rest, inputs, outputs = scores.shape
    groups = scores.reshape(*rest, inputs // form.of, form.of, outputs)
    rank = jnp.argsort(jnp.argsort(-groups, axis=-2, stable=True), axis=-2, stable=True)
    return (rank < form.keep).reshape(scores.shape)
