"""Channels removed until half of the multiply-adds are left: `ja.remove_channels` and torch-pruning.

    python benchmarks/channels.py [--quick] [--weights FILE] [--batch 1 128] [--torch-python PATH]

Networks before and after take turns, round by round. torch-pruning takes part where `--torch-python` has it. README.md
says what is measured.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from networks import Network, function
from rich.table import Table
from train_step import Process, Remote
from turns import Turn, measured, ratio, repeated, span, spread, timed
from variants import relative_error

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core import runtime
from jaxaccel.transforms.params.channels.remove import Removed

PyTree = Any
Function = Callable[[PyTree, jax.Array], jax.Array]
CLASSES = 10
THEIRS = ("torch-pruning", "torch-pruning, inside blocks")


def in_order(params: PyTree, state: PyTree) -> list[np.ndarray]:
    """The arrays of a ResNetCifar in PyTorch's layouts, in the order in which it uses them."""

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


def masking(variables: PyTree, removed: Removed) -> PyTree:
    """`variables` with zeros at all that is not kept: what the smaller network must still compute."""

    def leaf(path: tuple[Any, ...], x: Any) -> np.ndarray:
        x = np.array(x)
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        for axis, positions in removed.kept.get(text, {}).items():
            np.moveaxis(x, axis, 0)[np.setdiff1d(np.arange(x.shape[axis]), positions)] = 0
        return x

    return jax.tree_util.tree_map_with_path(leaf, variables)


def costs(f: Function, variables: PyTree, x: jax.Array) -> dict[str, int]:
    """Multiply-adds of one example, and parameters."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"multiply_adds": sum(ja.multiply_adds(f, variables, x[:1]).values()), "parameters": parameters}


def ours(
    f: Function, variables: PyTree, x: jax.Array, share: float, multiple: int, repeats: int
) -> tuple[PyTree, Any]:
    """What is left, and the same numbers as of torch-pruning."""
    removed, seconds = repeated(
        lambda: ja.remove_channels(f, variables, x[:1], flops=share, multiple=multiple), repeats
    )
    call = jax.jit(f)
    y, reference = call(removed.params, x), call(masking(variables, removed), x)
    error = relative_error(np.asarray(y), np.asarray(reference))
    return removed.params, costs(f, removed.params, x) | {
        "seconds": seconds,
        "error": error,
        "whole": dict(removed.fixed),
    }


def turn(f: Function, variables: PyTree, x: jax.Array) -> Turn:
    """Turns of inference, compiled, each call waited for."""
    arguments = jax.device_put((variables, x))
    compiled = jax.jit(ja.retarget(f)).lower(*arguments).compile()
    return timed(lambda: jax.block_until_ready(compiled(*arguments)))


def compared(options: argparse.Namespace, torch: Process | None, where: dict[str, Any]) -> dict[str, Any]:
    """Costs and results of all, then the latencies."""
    network = Network(
        f"resnet{options.depth}", partial(models.ResNetCifar, options.depth, width=options.width, classes=CLASSES),
        (options.image_size, options.image_size, 3),
    )  # fmt: skip
    f, variables = function(network)
    if options.weights:
        loaded = ja.load_pretrained((variables["params"], variables["state"]), options.weights)
        variables = {"params": loaded.params, "state": loaded.state}
    x = network.examples(32)
    rows: dict[str, Any] = {"JAX": costs(f, variables, x)}
    left: dict[str, PyTree] = {"JAX": variables}
    for multiple in options.multiple:
        name = f"jaxaccel, multiples of {multiple}" if multiple > 1 else "jaxaccel"
        left[name], rows[name] = ours(f, variables, x, options.flops, multiple, options.repeats)
    if torch:
        facts = sent(torch, variables, x, options)
        error = relative_error(np.array(facts.pop("outputs")), np.asarray(jax.jit(f)(variables, x)))
        if error > 1e-3:
            sys.exit(f"PyTorch's network is another one: it is off by {error:.1%}")
        where["versions"] |= facts.pop("versions")
        rows["PyTorch"] = facts
        for name in THEIRS:
            rows[name] = torch.ask(name=name, share=options.flops, repeats=options.repeats)
    working = [name for name, row in rows.items() if "failed" not in row]
    latencies = {}
    for batch_size in options.batch:
        batch = network.examples(batch_size)
        turns: dict[str, Turn] = {name: turn(f, smaller, batch) for name, smaller in left.items()}
        if torch:
            turns |= {
                name: Remote(torch, f"{name}, {batch_size}", "torch").run
                for name in working
                if name == "PyTorch" or name in THEIRS
            }
        times = measured(turns, options.seconds, options.rounds, options.budget)
        latencies[batch_size] = {name: spread(found, "_ms") for name, found in times.items()}
        for name in times.keys() - {"JAX", "PyTorch"}:
            whole = times["PyTorch" if name in THEIRS else "JAX"]
            latencies[batch_size][name]["times_as_fast"] = ratio(whole, times[name])
    return {"network": network.name, "weights": options.weights.name if options.weights else "random",
            "flops": options.flops, "results": rows, "latency": latencies}  # fmt: skip


def sent(torch: Process, variables: PyTree, x: jax.Array, options: argparse.Namespace) -> dict[str, Any]:
    """Gives the other process the network and what it is to compute; its answer."""
    with tempfile.TemporaryDirectory() as folder:
        weights, inputs = Path(folder) / "weights.npz", Path(folder) / "inputs.npy"
        np.savez(weights, *in_order(variables["params"], variables["state"]))
        np.save(inputs, x)
        return torch.ask(
            weights=str(weights),
            inputs=str(inputs),
            depth=options.depth,
            width=options.width,
            classes=CLASSES,
        )


def table(cell: Mapping[str, Any], where: Mapping[str, Any]) -> Table:
    """One line a network; `× as fast` is by the whole one of the same framework."""
    shown = Table(
        title=f"{cell['network']} ({cell['weights']}) at {cell['flops']:g} of its multiply-adds, "
        f"{where['device_kind']} ({where['cpu']}, {where['cores']} cores)"
    )
    shown.add_column("network")
    for heading in ("multiply-adds M", "parameters k", "first s", "best s", "off masking"):
        shown.add_column(heading, justify="right")
    for batch_size in cell["latency"]:
        shown.add_column(f"ms, batch {batch_size}", justify="right")
        shown.add_column("× as fast", justify="right")
    for name, row in cell["results"].items():
        if "failed" in row:
            shown.add_row(name, "failed")
            continue
        seconds = row.get("seconds", [])
        line = [f"{row['multiply_adds'] / 1e6:.2f}", f"{row['parameters'] / 1e3:.1f}"]
        line += [f"{s:.1f}" for s in (seconds[0], min(seconds))] if seconds else ["", ""]
        line.append(f"{row['error']:.1e}" if "error" in row else "")
        for found in cell["latency"].values():
            line += [span(found[name]), f"{found[name].get('times_as_fast', 1):.2f}"]
        shown.add_row(name, *line)
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--depth", type=int, default=56, help="layers of the ResNet (default: 56)")
    add("--width", type=int, default=16, help="channels of its first stage (default: 16)")
    add("--image-size", type=int, default=32, help="height and width (default: 32)")
    add("--weights", type=Path, help="a checkpoint of this network, PyTorch's or any other (default: random)")
    add("--flops", type=float, default=0.5, help="share of the multiply-adds to leave (default: 0.5)")
    add("--multiple", type=int, nargs="+", default=[1, 8], help="channels are left in these (default: 1 8)")
    add("--batch", type=int, nargs="+", default=[1, 128], help="batch sizes (default: 1 128)")
    add("--repeats", type=int, default=2, help="how often channels are removed, timed (default: 2)")
    add("--rounds", type=int, default=15, help="turns of each network (default: 15)")
    add("--seconds", type=float, default=0.5, help="about how long one turn takes (default: 0.5)")
    add("--budget", type=float, default=90, help="seconds for the rounds of one batch size (default: 90)")
    here = sys.executable if find_spec("torch_pruning") else None
    add("--torch-python", default=here, help="the Python that has torch and torch-pruning")
    add("--no-torch", dest="torch_python", action="store_const", const=None, help="leave torch-pruning out")
    add("--quick", action="store_true", help="only shows that all works")
    add("--out", type=Path, default=record.RESULTS, help="of the JSON (default: benchmarks/results)")
    options = parser.parse_args(argv)
    if options.quick:
        options.depth, options.width, options.image_size, options.batch = 8, 8, 8, [2]
        options.multiple, options.repeats, options.rounds, options.seconds = [1, 4], 1, 1, 0.0
    runtime.keep_freed_memory()
    where = record.machine()
    torch = Process(options.torch_python, "torch_channels.py") if options.torch_python else None
    if not torch:
        print("no Python with torch-pruning: its rows are left out")
    cell = compared(options, torch, where)
    if torch:
        torch.close()
    file = options.out / record.path("channels", where).name
    record.write(file, {"machine": where, "quick": options.quick, "cells": [cell]})
    for name, row in cell["results"].items():
        if "failed" in row:
            print(f"{name} failed: {row['failed']}")
    record.show(table(cell, where), file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
