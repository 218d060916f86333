"""Times jaxaccel's steps fused by a rolled and by an unrolled loop.

    python -m benchmarks rolled --workload mlp digits mnist --batch 64

XLA:CPU runs convolutions inside a while loop without its threaded kernels, so that the trainer unrolls on a CPU. On
a GPU rolled loops are as fast and compile sooner.
"""

from collections.abc import Iterator, Sequence

from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Options, choose_batches, choose_names, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, format_ratio, format_span
from benchmarks.trainer import TrainerStep, fuse_by_scan
from benchmarks.workloads import WORKLOADS, draw_data
from jaxaccel.core.timing import time_in_turns

EXAMPLES = 4096


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each workload and batch size."""
    for name in options.workload:
        for batch_size in options.batch:
            yield measure_cell(name, batch_size, options)


def measure_cell(name: str, batch_size: int, options: Options) -> Cell:
    """Measures both ways of one workload at one batch size."""
    workload = WORKLOADS[name]
    images, labels = draw_data(workload, min(workload.examples, max(EXAMPLES, batch_size)))
    fused = max(2, TrainerStep(workload, images, labels, batch_size).steps_per_call)
    turns = {
        way: TrainerStep(
            workload, images, labels, batch_size, steps_per_call=fused, fuse=fuse_by_scan(way == "unrolled")
        ).run
        for way in ("unrolled", "rolled")
    }
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = [{"name": way, "rounds": len(s), **summarize_times(s)} for way, s in times.rounds.items()]
    ratio = times.gain("unrolled", "rolled").ratio
    cell = {"workload": name, "batch_size": batch_size, "steps_per_call": fused}
    return cell | {"rolled_over_unrolled": ratio, "all": rows}


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a cell."""
    rows = []
    for cell in cells:
        unrolled, rolled = map(format_span, cell["all"])
        ratio = format_ratio(cell["rolled_over_unrolled"])
        rows.append(
            [cell["workload"], str(cell["batch_size"]), str(cell["steps_per_call"]), unrolled, rolled, ratio]
        )
    headings = [
        "workload",
        "batch",
        "steps a call",
        "unrolled, ms a step",
        "rolled, ms a step",
        "rolled / unrolled",
    ]
    return [Table("Fused steps, unrolled and rolled", headings, rows)]


BENCHMARK = Benchmark(
    measure, tabulate, ("workload", "batch_size"), prepare=set_up_trainer,
    options=(
        choose_names("workload", WORKLOADS, "Workloads.", ("digits", "mnist")),
        choose_batches(64, quick=(16,)),
        *time_by(9, 0.5, 45),
    ),
)  # fmt: skip
