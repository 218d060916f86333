"""Times training steps under masks: `ja.optim.sparse`, jaxpruner and the plain optimizer.

    python -m benchmarks sparse_step                                  # ResNet-20 on 32x32, ConvNet on 28x28
    python -m benchmarks sparse_step --without jaxpruner

All kernels are pruned to a sparsity of 0.8; masks change every 100 updates. Steps that change masks are timed apart.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxaccel as ja
from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, choose_names, read_count, time_by
from benchmarks.peers.process import Peer
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_span
from jaxaccel import models
from jaxaccel.core.timing import Times, compute_gain, run_repeatedly, time_in_turns
from jaxaccel.models.adapter import as_model
from jaxaccel.transforms.params.prune import sparsity_of

PyTree = Any
SPARSITY, STEPS, EVERY = 0.8, 10_000, 100
"""Of all kernels; of the run; from one change of the masks to the next."""
DUE = 3000
"""The number of an update with which masks change, on the way to the full sparsity at three quarters of the run."""
METHODS = ("gradual", "straight_through", "rigl", "fixed")
NETWORKS: Mapping[str, tuple[Callable[..., Any], tuple[int, int, int]]] = {
    "resnet20": (models.resnet20, (32, 32, 3)),
    "mnist": (models.ConvNet, (28, 28, 1)),
}
QUICK = {"small": (partial(models.ConvNet, widths=(4,), hidden=8), (8, 8, 1))}


@dataclasses.dataclass(frozen=True)
class Variant:
    """An optimizer, and what surrounds it in a step."""

    name: str
    tx: optax.GradientTransformation
    counter: str = ""
    """The field of its state that counts updates; none where there are no masks."""
    due: int = 0
    """What it counts when masks are to change; one more is a usual step."""
    after: Callable[[PyTree, Any], PyTree] = lambda params, state: params
    """(new params, its state) -> params: what is left to do behind the update."""

    @property
    def changes(self) -> bool:
        """Whether its masks ever change."""
        return bool(self.counter) and self.name != "fixed"


def make_variants(tx: optax.GradientTransformation, peers: set[str]) -> Iterator[Variant]:
    """Yields the plain optimizer, ours around it, and jaxpruner's."""
    yield Variant("plain", tx)
    for method in METHODS:
        fixed = method == "fixed"  # the zeros are in the weights
        how = ja.optim.Sparse(0.0 if fixed else SPARSITY, method=method, every=EVERY)
        # Ours counts the update that is being done, jaxpruner those that are done.
        yield Variant(method, ja.optim.sparse(tx, how, STEPS), "step", DUE - 1)
    if "jaxpruner" in peers:
        from benchmarks.peers import jaxpruner

        wrapped, after = jaxpruner.wrap(tx, SPARSITY, STEPS, EVERY)
        yield Variant("jaxpruner", wrapped, "count", DUE, after)


class Program:
    """A variant's step, or its update alone, compiled; the state stays between calls."""

    def __init__(
        self, variant: Variant, gradients: Callable[..., Any], params: PyTree, state: PyTree, given: PyTree
    ) -> None:
        """`gradients` takes (params, state, given) and returns (gradients, new state)."""
        if variant.name == "fixed":
            params = ja.params.masked(params, ja.prune(params, SPARSITY))

        def step(carry: Any, given: Any) -> Any:
            params, state, opt_state = carry
            grads, state = gradients(params, state, given)
            updates, opt_state = variant.tx.update(grads, opt_state, params)
            params = variant.after(optax.apply_updates(params, updates), opt_state)
            return params, state, opt_state

        # A copy for each: it is donated.
        self._carry = jax.tree.map(jnp.array, (params, state, variant.tx.init(params)))
        self._variant, self._given = variant, given
        self._step = jax.jit(ja.retarget(step), donate_argnums=0).lower(self._carry, given).compile()

    def advance(self, changing: bool = False) -> Any:
        """Takes a usual step, or one with which masks change."""
        params, state, opt_state = self._carry
        if self._variant.counter:
            count = np.int32(self._variant.due + (not changing))
            opt_state = opt_state._replace(**{self._variant.counter: count})
        self._carry = self._step((params, state, opt_state), self._given)
        return self._carry

    def count_zeros(self) -> float:
        """Counts the share of zeros among the kernels, one usual step later: weights that have just grown are 0."""
        self.advance()
        return sparsity_of(self._carry[0])


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each network."""
    networks = QUICK if options.quick else {name: NETWORKS[name] for name in options.networks}
    for name, (factory, shape) in networks.items():
        yield measure_cell(name, factory, shape, options)


def measure_cell(
    name: str, factory: Callable[..., Any], shape: tuple[int, int, int], options: Options
) -> Cell:
    """Measures all variants of one network."""
    variants = list(make_variants(optax.sgd(1e-3, momentum=0.9), options.peers))
    programs = make_programs(factory, shape, options.batch, variants)
    turns = {
        f"{variant.name} {what}{kind}": run_repeatedly(
            partial(programs[variant.name, what].advance, bool(kind))
        )
        for variant in variants
        for what in ("step", "update")
        for kind in ("", " changing")
        if not kind or variant.changes
    }
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = {variant.name: describe_variant(variant, times) for variant in variants}
    for variant in variants:
        rows[variant.name]["sparsity"] = programs[variant.name, "step"].count_zeros()
    rounds = len(times.rounds["plain step"])
    return {"network": name, "batch_size": options.batch, "rounds": rounds, "variants": rows}


def make_programs(
    factory: Callable[..., Any], shape: tuple[int, int, int], batch_size: int, variants: Sequence[Variant]
) -> dict[tuple[str, str], Program]:
    """Makes the step and the update alone of each variant, by its name."""
    facts = {"classes": 10, "channels": shape[2], "image_size": shape[0]}
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((batch_size, *shape), np.float32))
    labels = jnp.asarray(rng.integers(0, 10, batch_size, dtype=np.int32))
    model = as_model(factory, facts, (jax.eval_shape(lambda: images),))
    params, state = jax.jit(model.init)(jax.random.key(0))

    def gradients(params: PyTree, state: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
        def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            logits, new = model.apply(params, state, batch[0], key=jax.random.key(0), train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), new

        return jax.grad(loss, has_aux=True)(params)

    grads = jax.tree.map(lambda x: jnp.asarray(1e-3 * rng.standard_normal(x.shape), x.dtype), params)
    given = {
        "step": (gradients, params, state, (images, labels)),
        "update": (lambda params, state, grads: (grads, state), params, {}, grads),
    }
    return {(v.name, what): Program(v, *each) for v in variants for what, each in given.items()}


def describe_variant(variant: Variant, times: Times) -> Cell:
    """Describes one variant, and its ratios to the plain step and the plain update, round by round."""
    found: Cell = {}
    for what in ("step", "update"):
        plain, usual = times.rounds[f"plain {what}"], times.rounds[f"{variant.name} {what}"]
        found[what] = summarize_times(usual) | {"over_plain": compute_gain(plain, usual).ratio}
        mean = usual
        if variant.changes:
            changing = times.rounds[f"{variant.name} {what} changing"]
            over = compute_gain(plain, changing).ratio
            found[f"{what}_changing"] = summarize_times(changing) | {"over_plain": over}
            mean = [u + (c - u) / EVERY for u, c in zip(usual, changing, strict=True)]
        found[what]["mean_over_plain"] = compute_gain(plain, mean).ratio
    return found


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a variant."""
    headings = ["network", "optimizer", "batch", "step ms", "× plain", "changing ms", "× plain", f"× plain, of {EVERY}",
                "update ms", "changing ms", "zeros"]  # fmt: skip
    rows, against = [], {}
    for cell in cells:
        for name, one in cell["variants"].items():
            changing, alone = one.get("step_changing"), one.get("update_changing")
            rows.append(
                [cell["network"], name, str(cell["batch_size"]), format_span(one["step"]),
                 format_ratio(one["step"]["over_plain"]), format_span(changing) if changing else "",
                 format_ratio(changing["over_plain"]) if changing else "",
                 format_ratio(one["step"]["mean_over_plain"]), format_span(one["update"]),
                 format_span(alone) if alone else "", f"{one['sparsity']:.0%}"]
            )  # fmt: skip
        if theirs := cell["variants"].get("jaxpruner"):
            ours = cell["variants"]["gradual"]["step"]["mean_over_plain"]
            against[cell["network"]] = theirs["step"]["mean_over_plain"] / ours
    notes = [compare_with(f"jaxpruner (against gradual, of {EVERY} steps)", against)] if against else []
    return [Table("Training steps under masks", headings, rows, words=2, notes=notes)]


BENCHMARK = Benchmark(
    measure, tabulate, ("network", "batch_size"),
    options=(
        choose_names("networks", NETWORKS, "Networks."),
        Option("batch", "Images.", 64, 4, read_count, metavar="N"),
        *time_by(15, 0.3, 150),
    ),
    peers=(
        Peer("jaxpruner", ["jaxpruner"],
             "pip install ml_collections chex git+https://github.com/google-research/jaxpruner"),
    ),
)  # fmt: skip
