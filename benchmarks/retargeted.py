"""Milliseconds of whole training steps as XLA compiles them, and with `ja.retarget`, in turns.

    python benchmarks/retargeted.py [--quick] [--networks resnet50 encoder] [--batch 16]

A step is loss, gradients and SGD with momentum, on random images or embeddings. README.md says what the columns mean.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import record
from networks import NETWORKS, Encoder, Network, trained
from rich.table import Table
from turns import Turn, measured, ratio, span, spread, timed

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core import runtime
from jaxaccel.models.adapter import as_model

WAYS: Mapping[str, Callable[..., Any]] = {"XLA": lambda step: step, "retargeted": ja.retarget}
QUICK = {
    "encoder": Network("encoder", partial(Encoder, width=16, depth=1, heads=2, classes=10), (8, 16)),
    "small": Network(
        "small", partial(models.ConvNet, widths=(4,), hidden=8, image_size=8, channels=3), (8, 8, 3)
    ),
}
AGREES = 1e-2
"""Largest relative difference of the losses after a step: more is not another order of summation."""


def contenders(network: Network, batch_size: int) -> tuple[dict[str, Turn], dict[str, float]]:
    """({way: turn}, {way: loss after a step}) from the same weights."""
    shape = jax.ShapeDtypeStruct((batch_size, *network.shape), jnp.float32)
    model = as_model(network.make, {}, (shape,))
    optimizer = optax.sgd(1e-3, momentum=0.9)
    x, labels = network.examples(batch_size), jnp.arange(batch_size) % 10

    def loss(params: Any, state: Any) -> tuple[jax.Array, Any]:
        logits, state = model.apply(params, state, x, key=jax.random.key(0), train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    def step(variables: Any) -> tuple[Any, jax.Array]:
        params, state, moments = variables
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params, state)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), state, moments), value

    params, state = jax.jit(model.init)(jax.random.key(0))
    start = trained({"params": params, "state": state})
    turns, losses = {}, {}
    for way, changed in WAYS.items():
        box = [jax.tree.map(jnp.copy, (start["params"], start["state"], optimizer.init(start["params"])))]
        call = partial(_advance, box, jax.jit(changed(step), donate_argnums=0).lower(box[0]).compile())
        call()
        turns[way], losses[way] = timed(call), float(call())
    return turns, losses


def _advance(box: list[Any], step: Callable[..., Any]) -> jax.Array:
    box[0], loss = step(box[0])
    return jax.block_until_ready(loss)


def cell(network: Network, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both ways of one network."""
    turns, losses = contenders(network, batch_size)
    if not math.isclose(losses["XLA"], losses["retargeted"], rel_tol=AGREES):
        sys.exit(
            f"{network.name}: the loss after a step is {losses['XLA']} and, retargeted, {losses['retargeted']}"
        )
    times = measured(turns, options.seconds, options.rounds, options.budget)
    return {
        "network": network.name, "batch_size": batch_size, "rounds": len(times["XLA"]), "losses": losses,
        "steps": {way: spread(t, "_ms") for way, t in times.items()},
        "times_as_fast": ratio(times["XLA"], times["retargeted"]),
    }  # fmt: skip


def table(cells: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> Table:
    """One line a network."""
    shown = Table(title=f"Training steps, {where['device_kind']} ({where['cpu']}, {where['cores']} cores)")
    for heading in ("network", "batch", "XLA ms (min–max)", "retargeted ms (min–max)", "times as fast"):
        shown.add_column(heading, justify="left" if heading == "network" else "right")
    for entry in cells:
        steps = [span(entry["steps"][way]) for way in WAYS]
        shown.add_row(entry["network"], str(entry["batch_size"]), *steps, f"{entry['times_as_fast']:.2f}")
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="default: all")
    add("--batch", type=int, nargs="+", default=[16], help="examples (default: 16)")
    add("--rounds", type=int, default=7, help="turns of each way (default: 7)")
    add("--seconds", type=float, default=0.3, help="about how long one turn takes (default: 0.3)")
    add("--budget", type=float, default=40, help="seconds for the rounds of one network (default: 40)")
    add("--quick", action="store_true", help="only shows that all works")
    add("--out", type=Path, default=record.RESULTS, help="of the JSON (default: benchmarks/results)")
    options = parser.parse_args(argv)
    if options.quick:
        options.batch, options.rounds, options.seconds = [4], 1, 0.0
    runtime.keep_freed_memory()
    where, cells = record.machine(), []
    file = options.out / record.path("retargeted", where).name
    for network in QUICK.values() if options.quick else (NETWORKS[name] for name in options.networks):
        for batch_size in options.batch:
            cells.append(cell(network, batch_size, options))
            record.write(file, {"machine": where, "quick": options.quick, "cells": cells})
            jax.clear_caches()
    record.show(table(cells, where), file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
