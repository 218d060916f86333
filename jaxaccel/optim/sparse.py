"""Training of sparse weights around any optimizer: one-shot, gradual, straight-through, regrowing, or in rounds."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.core.options import Count, Options, Share, ShareBelowOne, checked
from jaxaccel.core.paths import parameter_path
from jaxaccel.errors import UserError, option
from jaxaccel.optim.float32_updates import apply_updates
from jaxaccel.transforms.params.prune import (
    KERNELS,
    Pattern,
    Scope,
    mark_largest,
    masked,
    prune,
    shares_by_shape,
)
from jaxaccel.transforms.params.select import select_leaves

PyTree = Any
Method = Literal["one_shot", "gradual", "straight_through", "set", "rigl", "lottery", "fixed"]
ROUNDS = ("set", "rigl", "lottery")
"""Methods that do something in rounds of `every` steps."""


@dataclasses.dataclass(frozen=True)
class Sparse(Options):
    """What to prune while training, and when; steps are updates of the optimizer."""

    sparsity: ShareBelowOne = 0.0
    """Share of the weights to remove; 0 prunes nothing, but for an n:m pattern, which decides it, and `fixed`."""
    method: Method = "gradual"
    """one_shot: at `begin`. gradual: more at every `every` steps from `begin` to `end`, fast at first (Zhu & Gupta
    2017, arXiv:1710.01878). straight_through: removed weights go on learning and may come back, until `end` (Zhou et
    al. 2021, arXiv:2102.04010, without its term that shrinks them). set, rigl: sparse from the start; every `every`
    steps until `end` the smallest weights make room for others, at random (Mocanu et al. 2018, arXiv:1707.04780) or
    where the gradient is largest (Evci et al. 2020, arXiv:1911.11134). lottery: in rounds of `every` steps, after
    each of which what is left goes back to its weights of step `begin` (Frankle et al. 2020, arXiv:1912.05671).
    fixed: weights that are 0 at the start stay 0."""
    pattern: str = "unstructured"
    """Remove weights one by one (unstructured), all but n of each m (2:4; gradual prunes them at once too),
    or in blocks (block, block:RxC); set and rigl know only the first."""
    scope: Scope = "layer"
    """layer removes that share of each layer, global of all layers together (not with set, rigl), erk a share
    of each layer that follows from its shape."""
    where: str = KERNELS
    """Prune the weights whose paths match this pattern; none that the optimizer's `freeze` keeps as they
    are."""
    begin: Share = 0.0
    """Share of all steps after which pruning begins."""
    end: Share = 0.75
    """Share of all steps after which the masks no longer change."""
    every: Count = 100
    """Number of steps from one change of the masks to the next."""
    regrow: Share = 0.3
    """Share of the weights that set and rigl exchange at first; it falls to 0 by a cosine."""

    def check_values(self) -> None:
        """Checks that nothing contradicts itself, and that nothing would be ignored."""
        form = Pattern.parse(self.pattern)
        if self.begin > self.end:
            raise UserError(
                f"{option('begin')} {self.begin:g} must not come after {option('end')} {self.end:g}"
            )
        regrows, share = self.method in ("set", "rigl"), 1 - form.keep / max(form.of, 1)
        ignored = {
            f"fixed keeps the zeros that there are: leave out {option('sparsity')} and {option('pattern')}":
                self.method == "fixed" and (self.sparsity > 0 or self.pattern != "unstructured"),
            f"{self.method} regrows single weights: leave out {option('pattern')} or choose another one":
                regrows and self.pattern != "unstructured",
            f"{self.method} keeps the count of each layer: choose {option('scope', 'layer')} or erk":
                regrows and self.scope == "global",
            f"{option('pattern')} {self.pattern} is a sparsity of {share:g}, not {self.sparsity:g}: leave out "
                f"{option('sparsity')}":
                form.of and self.sparsity and abs(self.sparsity - share) > 1e-6,
            f"{option('pattern')} {self.pattern} prunes every layer alike: leave out {option('scope')}":
                form.of and self.scope != "layer",
            f"{option('pattern')} {self.pattern} cannot be reached in rounds: choose {option('method', 'one_shot')}":
                form.of and self.method == "lottery",
        }  # fmt: skip
        for says, wrong in ignored.items():
            if wrong:
                raise UserError(says)

    @property
    def on(self) -> bool:
        """Whether anything is pruned."""
        return self.sparsity > 0 or Pattern.parse(self.pattern).of > 0 or self.method == "fixed"


class SparseState(NamedTuple):
    """State of `sparse`. Masks and weights have their parameter's path as a suffix, so they are sharded like it."""

    step: jax.Array
    """() int32: updates done."""
    masks: PyTree
    """Boolean arrays, True where a weight is kept; None for other parameters."""
    kept: PyTree
    """straight_through: the weights as if none were removed; lottery: those to go back to; else None everywhere."""
    inner: PyTree
    """State of the optimizer that is wrapped."""


@checked
def sparse(
    tx: optax.GradientTransformation, how: Sparse, steps: int, seed: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    """`tx` for weights that `how` prunes: after each update those that are removed are exactly 0.

    Give it the parameters as they are: the first update that prunes makes them sparse.

    Args:
      tx: any optimizer. Its gradients are 0 where weights are removed (straight_through: whole).
      how: what to prune, and when.
      steps: of the whole run, of which `how` says shares.
      seed: with the step, decides what is random: the masks that set and rigl start from, and where set grows. May be
        traced.

    Raises:
      UserError: no round of `ROUNDS` fits before its end, `where` selects nothing, or the pattern does not divide a
        weight; at the update, `params` is missing.
    """
    tx = optax.with_extra_args_support(tx)
    begin, end = round(how.begin * steps), max(round(how.end * steps), 1)
    if how.method in ROUNDS and how.every > end - begin:
        raise UserError(
            f"{how.method}: no round of {how.every} fits from begin (step {begin}) to end (step {end} of {steps}): "
            + (f"lower every to at most {end - begin}" if end > begin else "raise end, or lower begin")
        )
    through = how.method == "straight_through"

    def init(params: PyTree) -> SparseState:
        dense = _masks(params, how, 0.0)
        masks = _random(params, how, _key(seed, 0)) if how.method in ("set", "rigl") else dense
        if how.method == "fixed":
            masks = _map(lambda m, p: None if m is None else p != 0, dense, params)
        keeps = through or how.method == "lottery"
        # A copy: the state may be donated together with the parameters.
        kept = _map(lambda m, p: jnp.array(p) if keeps and m is not None else None, dense, params)
        return SparseState(jnp.int32(0), masks, kept, tx.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, SparseState]:
        if params is None:
            raise UserError("sparse: call update(grads, state, params)")
        grads = updates
        weights = _map(lambda k, p: p if k is None else k, state.kept, params) if through else params
        seen = grads if through else masked(grads, state.masks)
        extra |= _of_sparse(extra, state.masks, through)
        updates, inner = tx.update(seen, state.inner, weights, **extra)
        moved = apply_updates(weights, updates)
        new = SparseState(state.step + 1, state.masks, state.kept, inner)
        if how.method == "lottery":
            new, back = _next_round(new, moved, how, begin, end)
            new = new._replace(inner=_either(back, tx.init(params), new.inner))
            moved = _map(lambda k, m: m if k is None else jnp.where(back, k, m), new.kept, moved)
        else:
            masks = jax.lax.cond(
                _changes(new.step, how, begin, end),
                lambda: _changed(new.step, state.masks, moved, grads, how, begin, end, seed),
                lambda: state.masks,
            )
            new = new._replace(masks=masks)
        if through:
            new = new._replace(kept=_map(lambda k, m: None if k is None else m, state.kept, moved))
        # Sums are taken where they are exact: p + (0 - p) is 0, but p + ((p + u) - p) may differ from p + u.
        if how.method in ("straight_through", "lottery"):
            updates = jax.tree.map(lambda m, p: (m - p).astype(p.dtype), moved, params)
        return _map(
            lambda k, u, p: u if k is None else jnp.where(k, u, -p.astype(u.dtype)),
            new.masks,
            updates,
            params,
        ), new

    return optax.GradientTransformationExtraArgs(init, update)


def _of_sparse(extra: Mapping[str, Any], masks: PyTree, through: bool) -> dict[str, Any]:
    """The functions among what optimizers get besides, of the sparse weights; what is removed has no gradient."""

    def at_masked(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *rest, **more: f(masked(params, masks), *rest, **more)

    def kept(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return f if through else lambda *given, **more: masked(f(*given, **more), masks)

    found = {name: at_masked(f) for name, f in extra.items() if name in ("value_fn", "obj_fn", "grad_fn")}
    return found | ({"grad_fn": kept(found["grad_fn"])} if "grad_fn" in found else {})


def _changes(step: jax.Array, how: Sparse, begin: int, end: int) -> jax.Array:
    """Whether masks change with update number `step`, counted from 1."""
    if how.method == "fixed":
        return jnp.bool_(False)
    if how.method == "one_shot" or (how.method == "gradual" and Pattern.parse(how.pattern).of):
        return step == max(begin, 1)
    due = (step - begin) % how.every == 0
    if how.method in ("gradual", "straight_through"):
        due |= (step == end) | (step == max(begin, 1))
    return due & (step >= begin) & (step <= end)


def _changed(
    step: jax.Array,
    masks: PyTree,
    weights: PyTree,
    grads: PyTree,
    how: Sparse,
    begin: int,
    end: int,
    seed: int | jax.Array,
) -> PyTree:
    """The masks that update number `step` leaves."""
    done = jnp.clip((step - begin) / max(end - begin, 1), 0, 1)
    if how.method in ("set", "rigl"):
        share = how.regrow / 2 * (1 + jnp.cos(jnp.pi * done))
        key = None if how.method == "rigl" else _key(seed, step)
        axes = select_leaves(weights, how.where, at_least=2).stack_axes
        return _regrown(masks, weights, grads, share, key, axes)
    return _masks(weights, how, 1 - (1 - done) ** 3 if how.method == "gradual" else 1.0)


def _masks(params: PyTree, how: Sparse, share: float | jax.Array) -> PyTree:
    """Masks of `share` of the way to the whole sparsity."""
    if Pattern.parse(how.pattern).of:
        full = prune(params, None, how.pattern, "layer", "magnitude", how.where)
        return full if not isinstance(share, float) or share else jax.tree.map(jnp.ones_like, full)
    shares: Any = how.sparsity * share
    scope = how.scope
    if scope == "erk":
        lost = shares_by_shape(select_leaves(params, how.where, at_least=2), how.sparsity)
        shares = {path: one * share for path, one in lost.items()}
        scope = "layer"
    return prune(params, shares, how.pattern, scope, "magnitude", how.where)


def _key(seed: int | jax.Array, step: int | jax.Array) -> jax.Array:
    """Of update number `step`; 0 is the start. Numbers 0 and 1 of a step's key are its augmentation and dropout."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), 2)


def _random(params: PyTree, how: Sparse, key: jax.Array) -> PyTree:
    """Masks at random, of the whole sparsity, which differ from layer to layer."""
    shares: Any = how.sparsity
    if how.scope == "erk":
        shares = shares_by_shape(select_leaves(params, how.where, at_least=2), how.sparsity)
    return prune(params, shares, how.pattern, "layer", "random", how.where, key=key)


def _regrown(
    masks: PyTree,
    weights: PyTree,
    grads: PyTree,
    share: jax.Array,
    key: jax.Array | None,
    stack_axes: Mapping[str, int],
) -> PyTree:
    """`share` of each layer's weights, the smallest, make room for as many of those that were not there.

    Those with the largest gradients where there is no `key`.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(masks, is_leaf=lambda x: x is None)
    numbers = treedef.unflatten(range(len(leaves)))
    stacks = treedef.unflatten([stack_axes.get(parameter_path(path), 0) for path, _ in leaves])

    def layer(mask: jax.Array, size: jax.Array, wanted: jax.Array) -> jax.Array:
        count = mask.sum()
        exchanged = jnp.floor(share * count).astype(jnp.int32)
        stay = mark_largest(jnp.where(mask, size, -1.0), count - exchanged)
        return stay | mark_largest(jnp.where(stay, -1.0, wanted), exchanged)

    def leaf(mask: jax.Array | None, number: int, stack: int, w: jax.Array, g: jax.Array) -> jax.Array | None:
        if mask is None:
            return None
        wanted = (
            jnp.abs(g)
            if key is None
            else jax.random.uniform(jax.random.fold_in(key, number), w.shape, jnp.float32)
        )
        return (jax.vmap(layer) if stack else layer)(mask, jnp.abs(w), wanted)

    return _map(leaf, masks, numbers, stacks, weights, grads)


def _next_round(
    state: SparseState, weights: PyTree, how: Sparse, begin: int, end: int
) -> tuple[SparseState, jax.Array]:
    """The state when a round of the lottery may be over, and whether one is."""
    step = state.step
    rounds = (end - begin) // how.every
    done = (step - begin) // how.every
    back = (step > begin) & ((step - begin) % how.every == 0) & (done <= rounds)
    kept = _map(lambda k, w: None if k is None else jnp.where(step == begin, w, k), state.kept, weights)
    # Every round removes the same share of what is left.
    share = (1 - (1 - how.sparsity) ** (done / rounds)) / max(how.sparsity, 1e-9)
    masks = jax.lax.cond(back, lambda: _masks(masked(weights, state.masks), how, share), lambda: state.masks)
    return state._replace(kept=kept, masks=masks), back


def _either(chosen: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), x, y)


def _map(f: Any, first: PyTree, *rest: PyTree) -> PyTree:
    """`f` over leaves, None of the first tree among them."""
    return jax.tree.map(f, first, *rest, is_leaf=lambda x: x is None)
