"""Milliseconds of a training step under masks, by the plain optimizer's: `ja.optim.sparse` and jaxpruner.

    python benchmarks/sparse_step.py [--quick] [--networks resnet20 mnist] [--batch 64]

Variants take turns, round by round. jaxpruner takes part where it is installed. README.md says what each variant does
and what the columns mean.
"""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import record
from rich.table import Table
from turns import Turn, measured, ratio, span, spread, timed

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core import runtime
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


def variants(tx: optax.GradientTransformation) -> Iterator[Variant]:
    """The plain optimizer, ours around it, and jaxpruner's."""
    yield Variant("plain", tx)
    for method in METHODS:
        fixed = method == "fixed"  # the zeros are in the weights
        how = ja.optim.Sparse(0.0 if fixed else SPARSITY, method=method, every=EVERY)
        # Ours counts the update that is being done, jaxpruner those that are done.
        yield Variant(method, ja.optim.sparse(tx, how, STEPS), "step", DUE - 1)
    if find_spec("jaxpruner"):
        yield jaxpruner(tx)


def jaxpruner(tx: optax.GradientTransformation) -> Variant:
    """Its magnitude pruning of the same weights, each layer alike, by the same schedule as `gradual`."""
    # JAX has the function by another name now, and jaxpruner does not know.
    jax.__dict__.setdefault("tree_map", jax.tree.map)
    theirs = importlib.import_module("jaxpruner")
    distributions = theirs.sparsity_distributions
    pruner = theirs.MagnitudePruning(
        scheduler=theirs.PolynomialSchedule(
            update_freq=EVERY, update_start_step=0, update_end_step=round(0.75 * STEPS), power=3
        ),
        sparsity_distribution_fn=partial(
            distributions.uniform, sparsity=SPARSITY, filter_fn=distributions.KERNEL_FILTER_FN
        ),
    )
    return Variant("jaxpruner", pruner.wrap_optax(tx), "count", DUE, pruner.post_gradient_update)


class Program:
    """A variant's step, or its update alone, compiled; the state stays between calls."""

    def __init__(
        self, variant: Variant, gradients: Callable[..., Any], params: PyTree, state: PyTree, given: PyTree
    ) -> None:
        """`gradients` takes (params, state, given) and returns (gradients, new state)."""
        if variant.name == "fixed":
            params = ja.masked(params, ja.prune(params, SPARSITY))

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

    def turn(self, changing: bool) -> Turn:
        """Turns of usual steps, or of those with which masks change."""
        count = np.int32(self._variant.due + (not changing))

        def call() -> Any:
            params, state, opt_state = self._carry
            if self._variant.counter:
                opt_state = opt_state._replace(**{self._variant.counter: count})
            self._carry = jax.block_until_ready(self._step((params, state, opt_state), self._given))

        return timed(call)

    def sparsity(self) -> float:
        """Share of zeros among the kernels, one usual step later: until then weights that have just grown are 0."""
        self.turn(changing=False)(1)
        return sparsity_of(self._carry[0])


def cell(
    name: str, factory: Callable[..., Any], shape: tuple[int, int, int], options: argparse.Namespace
) -> dict[str, Any]:
    """All variants of one network."""
    facts = {"classes": 10, "channels": shape[2], "image_size": shape[0]}
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((options.batch, *shape), np.float32))
    labels = jnp.asarray(rng.integers(0, 10, options.batch, dtype=np.int32))
    model = as_model(factory, facts, (jax.eval_shape(lambda: images),))
    params, state = jax.jit(model.init)(jax.random.key(0))

    def gradients(params: PyTree, state: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
        def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            logits, new = model.apply(params, state, batch[0], key=jax.random.key(0), train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), new

        return jax.grad(loss, has_aux=True)(params)

    grads = jax.tree.map(lambda x: jnp.asarray(1e-3 * rng.standard_normal(x.shape), x.dtype), params)
    found = list(variants(optax.sgd(1e-3, momentum=0.9)))
    programs = {
        (variant.name, what): Program(variant, *each)
        for variant in found
        for what, each in {
            "step": (gradients, params, state, (images, labels)),
            "update": (lambda params, state, grads: (grads, state), params, {}, grads),
        }.items()
    }
    turns = {
        f"{name} {what}{kind}": program.turn(bool(kind))
        for (name, what), program in programs.items()
        for kind in ("", " changing")
        if not kind or next(v for v in found if v.name == name).changes
    }
    times = measured(turns, options.seconds, options.rounds, options.budget)
    rows = {variant.name: row(variant, times) for variant in found}
    for variant in found:
        rows[variant.name]["sparsity"] = programs[variant.name, "step"].sparsity()
    return {
        "network": name,
        "batch_size": options.batch,
        "rounds": len(times["plain step"]),
        "variants": rows,
    }


def row(variant: Variant, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The numbers of one variant, and its ratios to the plain step and the plain update, round by round."""
    found: dict[str, Any] = {}
    for what in ("step", "update"):
        plain, usual = times[f"plain {what}"], times[f"{variant.name} {what}"]
        found[what] = spread(usual, "_ms") | {"over_plain": ratio(usual, plain)}
        if variant.changes:
            changing = times[f"{variant.name} {what} changing"]
            found[f"{what}_changing"] = spread(changing, "_ms") | {"over_plain": ratio(changing, plain)}
            mean = [u + (c - u) / EVERY for u, c in zip(usual, changing, strict=True)]
            found[what]["mean_over_plain"] = ratio(mean, plain)
        else:
            found[what]["mean_over_plain"] = found[what]["over_plain"]
    return found


def table(cells: Sequence[dict[str, Any]], where: Mapping[str, Any]) -> Table:
    """One line a variant."""
    shown = Table(title=f"Steps under masks, {where['device_kind']} ({where['cpu']}, {where['cores']} cores)")
    shown.add_column("network")
    shown.add_column("optimizer")
    for heading in ("step ms", "× plain", "changing ms", "× plain", f"× plain, of {EVERY}",
                    "update ms", "changing ms", "zeros"):  # fmt: skip
        shown.add_column(heading, justify="right")
    for entry in cells:
        for name, one in entry["variants"].items():
            changing, alone = one.get("step_changing"), one.get("update_changing")
            shown.add_row(
                f"{entry['network']}, {entry['batch_size']}", name, span(one["step"]),
                f"{one['step']['over_plain']:.3f}", span(changing) if changing else "",
                f"{changing['over_plain']:.2f}" if changing else "", f"{one['step']['mean_over_plain']:.3f}",
                span(one["update"]), span(alone) if alone else "", f"{one['sparsity']:.0%}",
            )  # fmt: skip
        shown.add_section()
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="default: all")
    add("--batch", type=int, default=64, help="images (default: 64)")
    add("--rounds", type=int, default=15, help="turns of each variant (default: 15)")
    add("--seconds", type=float, default=0.3, help="about how long one turn takes (default: 0.3)")
    add("--budget", type=float, default=150, help="seconds for the rounds of one network (default: 150)")
    add("--quick", action="store_true", help="only shows that all works")
    add("--out", type=Path, default=record.RESULTS, help="of the JSON (default: benchmarks/results)")
    options = parser.parse_args(argv)
    if options.quick:
        options.batch, options.rounds, options.seconds = 4, 1, 0.0
    runtime.keep_freed_memory()
    where, cells = record.machine(), []
    if not find_spec("jaxpruner"):
        print("jaxpruner is not installed: its rows are left out")
    file = options.out / record.path("sparse_step", where).name
    for name, (factory, shape) in (
        QUICK if options.quick else {n: NETWORKS[n] for n in options.networks}
    ).items():
        cells.append(cell(name, factory, shape, options))
        record.write(file, {"machine": where, "quick": options.quick, "cells": cells})
    record.show(table(cells, where), file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
