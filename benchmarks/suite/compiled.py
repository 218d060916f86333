"""Compiles networks for GPUs that are not attached, and says what XLA made of them. Nothing is timed.

    python -m benchmarks compiled --devices h100                       # six networks, all precisions
    python -m benchmarks compiled --devices l4 t4 --networks resnet50 vit_s16 --variants "int8 dynamic"
    python -m benchmarks compiled --devices h100 --networks all --variants --steps float32 bfloat16

It needs `pip install 'jaxaccel[cuda]'` and no GPU. "became" lists by what the multiplications are computed, and in
which types, with their share of all; BatchNorm, biases and activations that cuDNN computes with a convolution are
counted as "epilogues". "held" is what the program holds in memory at most, with its arguments; "moved" what crosses to
the main memory; "least ms" is the roofline of both, which no real run reaches. XLA tunes nothing by timing here: where
no tile of Triton's fits a product, everything is compiled with cuBLAS instead, as "without Triton" says.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax

from benchmarks import ahead
from benchmarks.harness import Benchmark
from benchmarks.networks import NETWORKS, Network
from benchmarks.options import Option, Options, choose_names, read_count
from benchmarks.records import Cell
from benchmarks.suite.models import NAMES, SIDES
from benchmarks.tables import Table, format_short
from jaxaccel import models
from jaxaccel.advisor.roofline import roofline
from jaxaccel.core import hlo
from jaxaccel.core.hlo.text import list_calls, parse
from jaxaccel.core.unattached import GPUS, find_devices
from jaxaccel.distributed import make_mesh
from jaxaccel.errors import UserError

BATCH = {"infer": 32, "train": 128}
MENTIONED = 0.01
"""Share of the multiplications from which on it is told by what they are computed."""


def find_networks(names: Sequence[str]) -> list[Network]:
    """Finds networks by name; ``all`` are all models of the package."""
    if "all" in names:
        return [_describe_model(name) for name in NAMES]
    return [NETWORKS[name] for name in names]


def _describe_model(name: str) -> Network:
    side = SIDES.get(name, 224)
    sized = {"image_size": side} if name.startswith(("vit", "mixer")) else {}
    return Network(name, partial(getattr(models, name), **sized), (side, side, 3))


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each device, network and program."""
    for device in options.devices:
        for network in find_networks(options.networks):
            for mesh in options.meshes:
                shape = ahead.MESHES[mesh]
                on = make_mesh(shape, find_devices(f"{device}:8" if mesh != "one" else device))
                for variant in options.variants if mesh == "one" else ():
                    program = partial(ahead.infer_in[variant], network, options.batch or BATCH["infer"])
                    yield _compile(device, network, "inference", variant, mesh, program, on)
                for precision in options.steps:
                    program = partial(ahead.train, network, options.batch or BATCH["train"], precision, on)
                    yield _compile(device, network, "training step", precision, mesh, program, on)
            jax.clear_caches()


def _compile(
    device: str, network: Network, kind: str, precision: str, mesh: str, make: Any, on: jax.sharding.Mesh
) -> Cell:
    cell: Cell = {
        "device": device, "network": network.name, "program": kind, "precision": precision, "mesh": mesh,
    }  # fmt: skip
    try:
        program = make()
        start = time.perf_counter()
        compiled = ahead.compile_program(program, on)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        return cell | {"error": str(error).splitlines()[0][:200]}
    return cell | {"compile_seconds": round(time.perf_counter() - start, 1)} | describe(compiled, device)


def describe(compiled: jax.stages.Compiled, device: str) -> Cell:
    """Describes what became of a program: units and types of its multiplications, memory, roofline, host transfers."""
    text = compiled.as_text() or ""
    operations, line = hlo.operations(text), roofline(compiled, device)
    total = sum(o.flops * (o.trips or 1) for o in operations) or 1
    became: dict[str, float] = {}
    for operation in operations:
        words = hlo.describe_operation(operation)
        became[words] = became.get(words, 0) + operation.flops * (operation.trips or 1) / total
    counts = count_instructions(text)
    held = compiled.memory_analysis()
    return {
        "became": {words: round(share, 4) for words, share in sorted(became.items(), key=lambda x: -x[1])},
        "operations": dict(line.flops), "peak_bytes": line.peak_bytes, "bytes_accessed": line.bytes_accessed,
        "aliased_bytes": int(held.alias_size_in_bytes) if held else 0,
        "least_ms": 1e3 * line.seconds, "bound": line.bound, **counts,
    }  # fmt: skip


def count_instructions(text: str) -> dict[str, int]:
    """Counts in optimized HLO what cuDNN computes beside convolutions, transfers to the host, and collectives."""
    computations, entry = parse(text)
    found = {"epilogues": 0, "convolutions": 0, "attentions": 0, "host_transfers": 0, "collectives": 0}
    for place in list_calls(computations, entry):
        for instruction in place.computation.values():
            target = instruction.attribute(r'custom_call_target="([^"]*)"')
            found["convolutions"] += target.startswith("__cudnn$conv")
            found["epilogues"] += target == "__cudnn$convBiasActivationForward"
            found["attentions"] += target.startswith("__cudnn$fmha")
            found["host_transfers"] += instruction.opcode in ("infeed", "outfeed", "send", "recv")
            found["collectives"] += instruction.opcode.startswith(
                ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
            ) and not instruction.opcode.endswith("-done")
    return found


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table for each device and kind of program, a line for each network and precision."""
    tables = []
    kinds = dict.fromkeys((cell["device"], cell["program"]) for cell in cells)
    for device, kind in kinds:
        rows = [_line(c) for c in cells if (c["device"], c["program"]) == (device, kind)]
        headings = ["network", "precision", "mesh", "became", "epilogues", "held MB", "moved MB", "G operations",
                    "least ms", "of"]  # fmt: skip
        tables.append(Table(f"{GPUS[device].name}: {kind}", headings, rows, words=4))
    return tables


def _line(cell: Cell) -> list[str]:
    start = [cell["network"], cell["precision"], "" if cell["mesh"] == "one" else cell["mesh"]]
    if "error" in cell:
        return [*start, f"refused: {cell['error']}", *[""] * 6]
    shares = [f"{share:.0%} {words}" for words, share in cell["became"].items() if share >= MENTIONED]
    if cell["attentions"]:
        shares.append(f"{cell['attentions']} kernels of attention by cuDNN")
    operations = ", ".join(f"{dtype} {format_short(n / 1e9)}" for dtype, n in cell["operations"].items())
    epilogues = f"{cell['epilogues']} of {cell['convolutions']}" if cell["convolutions"] else ""
    return [
        *start, "; ".join(shares) or "no multiplication of matrices", epilogues, format_short(cell["peak_bytes"] / 1e6),
        format_short(cell["bytes_accessed"] / 1e6), operations, format_short(cell["least_ms"]), cell["bound"],
    ]  # fmt: skip


BENCHMARK = Benchmark(
    measure, tabulate, ("device", "network", "program", "precision", "mesh"), part="device",
    options=(
        choose_names("devices", GPUS, "GPUs."),
        Option("networks", "Networks, or all models of the package.", tuple(n for n in NETWORKS if n != "mlp"),
               ("resnet20",), choices=(*NETWORKS, "all"), several=True, metavar="NAME"),
        Option("variants", "Precisions of inference.", tuple(ahead.VARIANTS), ("int8 dynamic",),
               choices=tuple(ahead.VARIANTS), several=True, metavar="NAME"),
        Option("steps", "Precisions of a training step.", ahead.TRAINED, ("bfloat16",), choices=ahead.TRAINED,
               several=True, metavar="NAME"),
        Option("meshes", "Meshes.", ("one",), choices=tuple(ahead.MESHES), several=True, metavar="NAME"),
        Option("batch", "Examples (32 in inference, 128 in training).", None, 8, read_count, metavar="N"),
    ),
)  # fmt: skip
