"""Times inference in float32, bfloat16 and int8: jaxaccel, Qwix, PyTorch and ONNX Runtime.

    python -m benchmarks precision                                    # seven networks, batches of 1 and 16
    python -m benchmarks precision --models mlp resnet20 --batch 1 --rounds 5 --without qwix torch
    python -m benchmarks precision --peers-python PATH                # PyTorch and ONNX Runtime live there

Each variant has the same weights and is compared with float32 before anything is timed. Each call is waited for:
that is latency, not throughput. A record a network.
"""

from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax

from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.networks import NETWORKS, Network
from benchmarks.options import Mistake, Options, choose_batches, choose_names, time_by
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_short
from benchmarks.variants import (
    LIMITS,
    NAMES,
    Compiled,
    Variant,
    find_explained_share,
    make_variants,
    measure_error,
)
from jaxaccel.core.timing import Turn, run_repeatedly, time_in_turns

STATIC = ("int8 static, folded, retargeted", "int8 static, 4 at a time")
COLUMNS: dict[str, tuple[str, ...]] = {
    "float32": ("float32",),
    "retargeted": ("float32, folded, retargeted",),
    "bfloat16": ("bfloat16",),
    "int8 dynamic": ("int8 dynamic",),
    "int8 static": STATIC[:1],
    "4 at a time": STATIC[1:],
    "int8 weights only": ("int8 weight-only",),
    "Qwix int8": ("Qwix W8A8",),
    "PyTorch": ("PyTorch", "PyTorch, channels last"),
    "PyTorch bfloat16": ("PyTorch bfloat16",),
    "ONNX Runtime": ("ONNX Runtime float32",),
    "ONNX Runtime int8": ("ONNX Runtime int8",),
}
"""The variants whose fastest stands in a column."""
RIVALS = {
    "Qwix int8": "int8 dynamic", "ONNX Runtime int8": "int8 static", "ONNX Runtime": "retargeted",
    "PyTorch": "retargeted", "PyTorch bfloat16": "bfloat16",
}  # fmt: skip
"""With which of ours each is compared."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each network and batch size."""
    with open_process("torch_inference", "torch", options) as torch:
        for name in options.models:
            for batch_size in options.batch:
                yield measure_cell(NETWORKS[name], batch_size, torch, options)
                jax.clear_caches()


def measure_cell(network: Network, batch_size: int, torch: Process | None, options: Options) -> Cell:
    """Checks each variant of one network at one batch size, then times all in turns."""
    x = network.examples(batch_size)
    variants = [
        variant
        for variant in make_variants(network, batch_size)
        if variant.name in ("float32", *options.variants)
    ]
    failed, versions = {}, {}
    if "qwix" in options.peers:
        from benchmarks.peers import qwix_variants

        versions["qwix"] = metadata.version("qwix")
        for made in qwix_variants.make_variants(network, variants[0].params):
            if isinstance(made, Variant):
                variants.append(made)
            else:
                failed[made[0]] = made[1]
    programs = [Compiled(variant, x) for variant in variants]
    described = describe_programs(network, programs, variants, x)
    turns: dict[str, Turn] = {program.name: run_repeatedly(program.call) for program in programs}
    peers: dict[str, str] = {}
    if torch:
        made = torch.ask(network=network.name, shape=x.shape)
        turns |= {name: torch.turn(name) for name in made["names"]}
        peers = made["versions"]
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = [
        {"group": "peer", "name": name, "rounds": len(found), **summarize_times(found),
         "ratio": 1 / times.gain(name, "float32").ratio, **described.get(name, {})}
        for name, found in times.rounds.items()
    ]  # fmt: skip
    cell = {"model": network.name, "batch_size": batch_size, "variants": rows, "failed": failed}
    return cell | {"peers": peers, "versions": versions}


def describe_programs(
    network: Network, programs: Sequence[Compiled], variants: Sequence[Variant], x: jax.Array
) -> dict[str, dict[str, Any]]:
    """Describes by name what each variant computes; ends the benchmark where it is something else than the network."""
    reference, found = programs[0].output(), {}
    for program, variant in zip(programs, variants, strict=True):
        error = measure_error(program.output(), reference)
        if not error <= LIMITS[program.dtype]:
            raise Mistake(f"{network.name}, {program.name}: the result is off by {error:.1%} of float32's")
        found[program.name] = {
            "group": program.group, "relative_error": error, "explained_share": find_explained_share(variant, x),
            "compiled_share": program.count_compiled_share(), "weight_bytes": program.weight_bytes,
        }  # fmt: skip
    return found


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table of times, one of ratios, and one of what the variants are."""
    return [tabulate_times(cells), tabulate_ratios(cells), tabulate_variants(cells)]


def pick_medians(cell: Cell) -> dict[str, float]:
    """Picks the milliseconds of each column."""
    times = {row["name"]: row["median_ms"] for row in cell["variants"]}
    found = {column: [times[name] for name in names if name in times] for column, names in COLUMNS.items()}
    return {column: min(values) for column, values in found.items() if values}


def tabulate_times(cells: Sequence[Cell]) -> Table:
    """Makes one line a cell: milliseconds of a call."""
    rows, compared = [], {rival: {} for rival in RIVALS}
    for cell in cells:
        times = pick_medians(cell)
        values = [format_short(times[column]) if column in times else "" for column in COLUMNS]
        rows.append([cell["model"], str(cell["batch_size"]), *values])
        for rival, ours in RIVALS.items():
            if rival in times and ours in times:
                compared[rival][f"{cell['model']}, batch {cell['batch_size']}"] = times[rival] / times[ours]
    notes = [
        compare_with(f"{rival} (against {RIVALS[rival]})", found)
        for rival, found in compared.items()
        if found
    ]
    failed = {
        f"{name} cannot do {cell['model']}: {why}" for cell in cells for name, why in cell["failed"].items()
    }
    title = "Milliseconds of a call, the median"
    return Table(title, ["network", "batch", *COLUMNS], rows, notes=[*notes, *sorted(failed)])


def tabulate_ratios(cells: Sequence[Cell]) -> Table:
    """Makes one line a cell: how many times as fast as float32 each column is."""
    columns = [column for column in COLUMNS if column != "float32"]
    rows = []
    for cell in cells:
        ratios = {row["name"]: 1 / row["ratio"] for row in cell["variants"]}
        best = [max((ratios[n] for n in COLUMNS[column] if n in ratios), default=None) for column in columns]
        rows.append([cell["model"], str(cell["batch_size"]), *map(format_ratio, best)])
    return Table("Times as fast as float32 in JAX", ["network", "batch", *columns], rows)


def tabulate_variants(cells: Sequence[Cell]) -> Table:
    """Makes one line a variant, of the largest batch: how exact it is, and how much of it is narrow."""
    headings = ["network", "variant", "batch", "relative error", "narrow", "narrow in HLO", "weights MB"]
    largest = {cell["model"]: cell for cell in sorted(cells, key=lambda cell: cell["batch_size"])}
    rows = []
    for model in dict.fromkeys(cell["model"] for cell in cells):
        for row in largest[model]["variants"]:
            if row["group"] == "peer":
                continue
            said = row["explained_share"]
            rows.append(
                [model, row["name"], str(largest[model]["batch_size"]), f"{row['relative_error']:.1e}",
                 "" if said is None else f"{said:.0%}", f"{row['compiled_share']:.0%}",
                 f"{row['weight_bytes'] / 1e6:.2f}"]
            )  # fmt: skip
    return Table("Variants", headings, rows, words=2)


BENCHMARK = Benchmark(
    measure, tabulate, ("model", "batch_size"), part="model", prepare=set_up_trainer,
    options=(
        choose_names("models", NETWORKS, "Networks."),
        choose_names("variants", NAMES, "Variants beside float32."),
        choose_batches(1, 16, quick=(2,)),
        *time_by(15, 0.2),
    ),
    peers=(
        Peer("qwix", ["qwix"], "pip install qwix"),
        Peer("torch", ["torch", "torchvision", "onnx", "onnxscript", "onnxruntime"],
             "pip install torch torchvision onnx onnxscript onnxruntime", apart=True),
    ),
)  # fmt: skip
