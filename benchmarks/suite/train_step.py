"""Times a training step: jaxaccel, a hand-written Flax NNX loop and PyTorch eager.

    python -m benchmarks train_step --workload mlp digits
    python -m benchmarks train_step --workload lstm --batch 4 16 64
    python -m benchmarks train_step --without torch

Of the styles of NNX and the memory layouts of PyTorch the fastest counts. A record a workload.
"""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Options, choose_batches, choose_names, time_by
from benchmarks.peers.nnx_steps import VARIANTS, HandWrittenStep
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_short, format_span
from benchmarks.trainer import TrainerStep
from benchmarks.workloads import WORKLOADS, draw_data
from jaxaccel.core.timing import Times, Turn, time_in_turns

OURS = "jaxaccel"
RIVALS = {"nnx": "NNX", "torch": "PyTorch"}
MAX_EXAMPLES = 4096
"""Examples under ``--quick``."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each workload and batch size."""
    with open_process("torch_steps", "torch", options) as torch:
        for workload in options.workload:
            for batch_size in options.batch:
                yield measure_cell(workload, batch_size, torch, options)


def measure_cell(name: str, batch_size: int, torch: Process | None, options: Options) -> Cell:
    """Measures all contenders of one workload at one batch size."""
    workload = WORKLOADS[name]
    examples = min(workload.examples, MAX_EXAMPLES) if options.quick else workload.examples
    images, labels = draw_data(workload, max(examples, batch_size))
    ours = TrainerStep(workload, images, labels, batch_size)
    turns: dict[str, Turn] = {OURS: ours.run}
    for style in VARIANTS:
        turns[style] = HandWrittenStep(workload, images, labels, batch_size, style).run
    groups, versions = {OURS: OURS, **dict.fromkeys(VARIANTS, "nnx")}, {}
    if torch:
        made = torch.ask(workload=name, examples=len(images), batch_size=batch_size)
        turns |= {layout: torch.turn(layout) for layout in made["names"]}
        groups |= dict.fromkeys(made["names"], "torch")
        versions = made["versions"]
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    cell = {"workload": name, "batch_size": batch_size, "steps_per_call": ours.steps_per_call}
    return cell | describe_times(times, groups, batch_size) | {"versions": versions}


def describe_times(times: Times, groups: dict[str, str], batch_size: int) -> Cell:
    """Describes the fastest of each group, how jaxaccel compares with it, and all contenders."""
    rows = [
        {"group": groups[name], "name": name, "rounds": len(found), **summarize_times(found)}
        for name, found in times.rounds.items()
    ]
    best = {}
    for group in dict.fromkeys(groups.values()):
        row = min((r for r in rows if r["group"] == group), key=lambda r: r["median_ms"])
        best[group] = {key: row[key] for key in ("name", "median_ms", "min_ms", "max_ms")}
        best[group]["examples_per_second"] = 1e3 * batch_size / row["median_ms"]
    ratios = {g: times.gain(OURS, row["name"]).ratio for g, row in best.items() if g != OURS}
    return {"best": best, "times_as_fast_as": ratios, "all": rows}


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a cell; a ratio above 1 says that jaxaccel is that many times as fast."""
    headings = ["workload", "batch", "jaxaccel ms", "examples/s", "NNX ms", "fastest style", "PyTorch ms",
                "layout", "× NNX", "× nnx.jit", "× PyTorch"]  # fmt: skip
    rows = []
    for cell in cells:
        best, ratios = cell["best"], cell["times_as_fast_as"]
        peers = []
        for group in RIVALS:
            peers += [format_span(best[group]), best[group]["name"]] if group in best else ["", ""]
        plain = next(row["median_ms"] for row in cell["all"] if row["name"] == "nnx.jit")
        rows.append(
            [cell["workload"], str(cell["batch_size"]), format_span(best[OURS]),
             format_short(best[OURS]["examples_per_second"]), *peers, format_ratio(ratios.get("nnx")),
             format_ratio(plain / best[OURS]["median_ms"]), format_ratio(ratios.get("torch"))]
        )  # fmt: skip
    return [Table("Milliseconds of a training step", headings, rows, notes=compare_rivals(cells))]


def compare_rivals(cells: Sequence[Cell]) -> list[str]:
    """Says where others are faster."""
    notes = []
    for group, name in RIVALS.items():
        found = {
            f"{cell['workload']}, batch {cell['batch_size']}": cell["times_as_fast_as"][group]
            for cell in cells
            if group in cell["times_as_fast_as"]
        }
        if found:
            notes.append(compare_with(name, found))
            notes.append(f"× {name}: median of all cells {format_ratio(statistics.median(found.values()))}.")
    return notes


BENCHMARK = Benchmark(
    measure, tabulate, ("workload", "batch_size"), part="workload", prepare=set_up_trainer,
    options=(
        choose_names("workload", WORKLOADS, "Workloads."),
        choose_batches(64, 256, 1024, quick=(16,)),
        *time_by(9, 0.5, 45),
    ),
    peers=(Peer("torch", ["torch", "numpy"], "pip install torch", apart=True),),
)  # fmt: skip
