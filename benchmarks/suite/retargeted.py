"""Times whole training steps as XLA compiles them, and with `ja.retarget`.

    python -m benchmarks retargeted                                   # 16 examples of each network
    python -m benchmarks retargeted --networks encoder --batch 4 64

A step is loss, gradients and SGD with momentum, on random images or embeddings. Both start from the same weights,
and it ends where their losses after a step differ.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxaccel as ja
from benchmarks.harness import Benchmark
from benchmarks.networks import NETWORKS, Encoder, Network, fill_constants
from benchmarks.options import Mistake, Options, choose_batches, choose_names, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_span
from jaxaccel import models
from jaxaccel.core.timing import Turn, run_repeatedly, time_in_turns
from jaxaccel.models.adapter import as_model

WAYS: Mapping[str, Callable[..., Any]] = {"XLA": lambda step: step, "retargeted": ja.retarget}
QUICK = (
    Network("encoder", partial(Encoder, width=16, depth=1, heads=2, classes=10), (8, 16)),
    Network("small", partial(models.ConvNet, widths=(4,), hidden=8, image_size=8, channels=3), (8, 8, 3)),
)
AGREES = 1e-2
"""Largest relative difference of the losses after a step: more is not another order of summation."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each network and batch size."""
    for network in QUICK if options.quick else [NETWORKS[name] for name in options.networks]:
        for batch_size in options.batch:
            yield measure_cell(network, batch_size, options)
            jax.clear_caches()


def measure_cell(network: Network, batch_size: int, options: Options) -> Cell:
    """Measures both ways of one network."""
    turns, losses = make_contenders(network, batch_size)
    if not math.isclose(losses["XLA"], losses["retargeted"], rel_tol=AGREES):
        raise Mistake(f"{network.name}: the losses after a step differ: {losses}")
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    return {
        "network": network.name, "batch_size": batch_size, "rounds": len(times.rounds["XLA"]), "losses": losses,
        "steps": {way: summarize_times(found) for way, found in times.rounds.items()},
        "times_as_fast": times.gain("retargeted", "XLA").ratio,
    }  # fmt: skip


def make_contenders(network: Network, batch_size: int) -> tuple[dict[str, Turn], dict[str, float]]:
    """Makes ({way: turn}, {way: loss after a step}) from the same weights."""
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
    start = fill_constants({"params": params, "state": state})
    turns, losses = {}, {}
    for way, change in WAYS.items():
        box = [jax.tree.map(jnp.copy, (start["params"], start["state"], optimizer.init(start["params"])))]
        call = partial(advance, box, jax.jit(change(step), donate_argnums=0).lower(box[0]).compile())
        call()
        turns[way], losses[way] = run_repeatedly(call), float(call())
    return turns, losses


def advance(box: list[Any], step: Callable[..., Any]) -> jax.Array:
    """Takes a step from the variables in the box, and puts the next ones there."""
    box[0], loss = step(box[0])
    return loss


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a network and batch size."""
    rows = [
        [cell["network"], str(cell["batch_size"]), *(format_span(cell["steps"][way]) for way in WAYS),
         format_ratio(cell["times_as_fast"])]
        for cell in cells
    ]  # fmt: skip
    headings = ["network", "batch", "XLA ms", "retargeted ms", "times as fast"]
    ratios = {f"{cell['network']}, batch {cell['batch_size']}": cell["times_as_fast"] for cell in cells}
    return [
        Table("Training steps with ja.retarget", headings, rows, notes=[compare_with("XLA's own", ratios)])
    ]


BENCHMARK = Benchmark(
    measure, tabulate, ("network", "batch_size"),
    options=(choose_names("networks", NETWORKS, "Networks."), choose_batches(16), *time_by(7, 0.3, 40)),
)  # fmt: skip
