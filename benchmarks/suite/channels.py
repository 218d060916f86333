"""Removes channels until half of the multiply-adds are left: `ja.remove_channels` and torch-pruning.

    python -m benchmarks channels                                     # ResNet-56 with random weights
    python -m benchmarks channels --weights FILE                      # or published ones: PyTorch, safetensors, npz
    python -m benchmarks channels --peers-python PATH                 # a Python with torch and torch-pruning

Channels of least magnitude go, wherever they are; at least a tenth of each layer's stay, and nothing is trained
afterward. PyTorch gets the same weights, and it ends where its network does not compute the same.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxaccel as ja
from benchmarks.harness import Benchmark
from benchmarks.networks import Network, make_function
from benchmarks.options import Mistake, Option, Options, choose_batches, read_count, read_number, time_by
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.peers.serve import repeat_call
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_span
from benchmarks.variants import measure_error
from jaxaccel import models
from jaxaccel.core.timing import Turn, run_repeatedly, time_in_turns
from jaxaccel.transforms.params.channels.remove import Removed

PyTree = Any
Function = Callable[[PyTree, jax.Array], jax.Array]
CLASSES = 10
AGREES = 1e-3
"""Largest relative error at which PyTorch's network is the same."""
THEIRS = ("torch-pruning", "torch-pruning, inside blocks")


def order_arrays(params: PyTree, state: PyTree) -> list[np.ndarray]:
    """Orders the arrays of a ResNetCifar in PyTorch's layouts, in the order in which it uses them."""

    def layer(path: Sequence[Any], conv: str, norm: str) -> list[Any]:
        own, statistics = params, state
        for key in path:
            own, statistics = own[key], statistics[key]
        kernel = np.transpose(own[conv]["kernel"], (3, 2, 0, 1))
        return [
            kernel, own[norm]["scale"], own[norm]["bias"], statistics[norm]["mean"], statistics[norm]["var"]
        ]  # fmt: skip

    found = layer(["stem"], "conv", "norm")
    for i, stage in sorted(params["stages"].items()):
        for j in sorted(stage):
            found += layer(["stages", i, j], "conv1", "norm1") + layer(["stages", i, j], "conv2", "norm2")
    found += [np.transpose(params["head"]["kernel"]), params["head"]["bias"]]
    return [np.array(x, np.float32) for x in found]


def mask_removed(variables: PyTree, removed: Removed) -> PyTree:
    """Puts zeros at all that is not kept: what the smaller network must still compute."""

    def leaf(path: tuple[Any, ...], x: Any) -> np.ndarray:
        x = np.array(x)
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        for axis, positions in removed.kept.get(text, {}).items():
            np.moveaxis(x, axis, 0)[np.setdiff1d(np.arange(x.shape[axis]), positions)] = 0
        return x

    return jax.tree_util.tree_map_with_path(leaf, variables)


def count_costs(f: Function, variables: PyTree, x: jax.Array) -> dict[str, int]:
    """Counts multiply-adds of one example, and parameters."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {
        "multiply_adds": sum(ja.params.count_multiply_adds(f, variables, x[:1]).values()),
        "parameters": parameters,
    }


def measure(options: Options) -> Iterator[Cell]:
    """Yields the one cell: costs and results of all, then the latencies."""
    with open_process("torch_channels", "torch-pruning", options) as torch:
        yield measure_cell(torch, options)


def measure_cell(torch: Process | None, options: Options) -> Cell:
    """Removes channels by each, checks what is left, and times all in turns."""
    network = Network(
        f"resnet{options.depth}", partial(models.ResNetCifar, options.depth, width=options.width, classes=CLASSES),
        (options.image_size, options.image_size, 3),
    )  # fmt: skip
    f, variables = make_function(network)
    if options.weights:
        loaded = ja.models.load_pretrained((variables["params"], variables["state"]), options.weights)
        variables = {"params": loaded.params, "state": loaded.state}
    x = network.examples(32)
    rows: dict[str, Any] = {"JAX": count_costs(f, variables, x)}
    left: dict[str, PyTree] = {"JAX": variables}
    for multiple in options.multiple:
        name = f"jaxaccel, multiples of {multiple}" if multiple > 1 else "jaxaccel"
        left[name], rows[name] = remove_channels(f, variables, x, multiple, options)
    versions = {}
    if torch:
        rows["PyTorch"], versions = send_network(torch, f, variables, x, options)
        rows |= {n: torch.ask(name=n, share=options.flops, repeats=options.repeats) for n in THEIRS}
    latency = {}
    for batch_size in options.batch:
        turns = make_turns(f, left, network.examples(batch_size))
        if torch:
            working = [name for name in ("PyTorch", *THEIRS) if "failed" not in rows[name]]
            turns |= {name: torch.turn(f"{name}, {batch_size}") for name in working}
        latency[str(batch_size)] = time_networks(turns, options)
    weights = options.weights.name if options.weights else "random"
    cell = {"network": network.name, "weights": weights, "flops": options.flops}
    return cell | {"results": rows, "latency": latency, "versions": versions}


def remove_channels(
    f: Function, variables: PyTree, x: jax.Array, multiple: int, options: Options
) -> tuple[PyTree, Cell]:
    """Removes channels by `ja.remove_channels`: what is left, and the same numbers as of torch-pruning."""
    removed, seconds = repeat_call(
        lambda: ja.remove_channels(f, variables, x[:1], flops=options.flops, multiple=multiple),
        options.repeats,
    )
    call = jax.jit(f)
    y, reference = call(removed.params, x), call(mask_removed(variables, removed), x)
    error = measure_error(np.asarray(y), np.asarray(reference))
    found = {"seconds": seconds, "error": error, "whole": dict(removed.fixed)}
    return removed.params, count_costs(f, removed.params, x) | found


def make_turns(f: Function, left: dict[str, PyTree], x: jax.Array) -> dict[str, Turn]:
    """Makes turns of inference, compiled."""

    def make(variables: PyTree) -> Turn:
        arguments = jax.device_put((variables, x))
        compiled = jax.jit(ja.retarget(f)).lower(*arguments).compile()
        return run_repeatedly(lambda: compiled(*arguments))

    return {name: make(variables) for name, variables in left.items()}


def time_networks(turns: dict[str, Turn], options: Options) -> dict[str, Cell]:
    """Times networks, and how many times as fast as the whole one of its framework each is."""
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    found = {name: summarize_times(seconds) for name, seconds in times.rounds.items()}
    for name in found.keys() - {"JAX", "PyTorch"}:
        found[name]["times_as_fast"] = times.gain(name, "PyTorch" if name in THEIRS else "JAX").ratio
    return found


def send_network(
    torch: Process, f: Function, variables: PyTree, x: jax.Array, options: Options
) -> tuple[Cell, dict[str, str]]:
    """Gives the other process the network, and checks that it computes the same; its costs and its versions."""
    with tempfile.TemporaryDirectory() as folder:
        weights, inputs = Path(folder) / "weights.npz", Path(folder) / "inputs.npy"
        np.savez(weights, *order_arrays(variables["params"], variables["state"]))
        np.save(inputs, x)
        facts = torch.ask(
            weights=str(weights),
            inputs=str(inputs),
            depth=options.depth,
            width=options.width,
            classes=CLASSES,
        )
    error = measure_error(np.array(facts.pop("outputs")), np.asarray(jax.jit(f)(variables, x)))
    if error > AGREES:
        raise Mistake(f"PyTorch's network is another one: it is off by {error:.1%}")
    return facts, facts.pop("versions")


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table a cell, one line a network."""
    return [tabulate_cell(cell) for cell in cells]


def tabulate_cell(cell: Cell) -> Table:
    """Makes one line a network; `× as fast` is by the whole one of the same framework."""
    headings = ["network", "multiply-adds M", "parameters k", "first removal s", "best s", "off masking"]
    for batch_size in cell["latency"]:
        headings += [f"ms, batch {batch_size}", "× as fast"]
    rows, notes = [], []
    for name, row in cell["results"].items():
        if "failed" in row:
            rows.append([name, "failed"] + [""] * (len(headings) - 2))
            notes.append(f"{name} failed: {row['failed']}")
            continue
        seconds = row.get("seconds", [])
        line = [f"{row['multiply_adds'] / 1e6:.2f}", f"{row['parameters'] / 1e3:.1f}"]
        line += [f"{s:.1f}" for s in (seconds[0], min(seconds))] if seconds else ["", ""]
        line.append(f"{row['error']:.1e}" if "error" in row else "")
        for found in cell["latency"].values():
            line += [format_span(found[name]), format_ratio(found[name].get("times_as_fast", 1.0))]
        rows.append([name, *line])
    title = f"{cell['network']} ({cell['weights']}) at {cell['flops']:g} of its multiply-adds"
    return Table(title, headings, rows, notes=[*notes, *compare_rivals(cell)])


def compare_rivals(cell: Cell) -> list[str]:
    """Says where what others leave is faster than the fastest that we do, and where the whole network is."""
    notes = []
    for ours in (name for name in cell["results"] if name.startswith("jaxaccel")):
        gains = {f"batch {size}": found[ours]["times_as_fast"] for size, found in cell["latency"].items()}
        notes.append(compare_with(f"The whole network (against {ours})", gains))
    for theirs in ("PyTorch", *THEIRS):
        ratios = {}
        for batch_size, found in cell["latency"].items():
            ours = [row["median_ms"] for name, row in found.items() if name.startswith("jaxaccel")]
            if theirs in found and ours:
                ratios[f"batch {batch_size}"] = found[theirs]["median_ms"] / min(ours)
        if ratios:
            notes.append(compare_with(theirs, ratios))
    return notes


BENCHMARK = Benchmark(
    measure, tabulate, ("network", "weights", "flops"),
    options=(
        Option("depth", "Layers of the ResNet.", 56, 8, read_count, metavar="N"),
        Option("width", "Channels of its first stage.", 16, 8, read_count, metavar="N"),
        Option("image_size", "Height and width.", 32, 8, read_count, metavar="N"),
        Option("weights", "A checkpoint of this network, PyTorch's or any other (default: random).", type=Path,
               metavar="FILE"),
        Option("flops", "Share of the multiply-adds to leave.", 0.5, type=read_number),
        Option("multiple", "Channels are left in multiples of these.", (1, 8), (1, 4), read_count, several=True,
               metavar="N"),
        choose_batches(1, 128, quick=(2,)),
        Option("repeats", "How often channels are removed, timed.", 2, 1, read_count, metavar="N"),
        *time_by(15, 0.5, 90),
    ),
    peers=(
        Peer("torch-pruning", ["torch", "torch_pruning"], "pip install torch torch-pruning", apart=True),
    ),
)  # fmt: skip
