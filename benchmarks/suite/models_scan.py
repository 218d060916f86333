"""Times deep models whose equal blocks follow one another, and the same as one loop: to compile, and a step.

    python -m benchmarks models_scan

CIFAR ResNets of 20 to 110 layers and Transformers of 12 to 48 blocks (as wide as ViT-Ti, patches of 4 pixels),
training on batches of 32 images of 32x32.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax

from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, choose_names, read_count, time_by
from benchmarks.programs import make_programs, time_programs
from benchmarks.records import Cell
from benchmarks.suite.models import DTYPES, add_seconds
from benchmarks.tables import Table, format_ratio, format_short
from jaxaccel import models

VIT = partial(models.VisionTransformer, width=192, heads=3, patch_size=4, image_size=32)
DEPTHS = {
    "resnet20": models.resnet20,
    "resnet110": models.resnet110,
    "vit, 12 blocks": partial(VIT, depth=12),
    "vit, 48 blocks": partial(VIT, depth=48),
}


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each model."""
    for name in options.models:
        programs = []
        for form, scan in (("unrolled", False), ("scanned", True)):
            factory = partial(DEPTHS[name], scan=scan)
            (program,) = make_programs(factory, 32, options.batch, options.dtype, ("train",))
            program.name = form
            programs.append(program)
        yield {"model": name, "batch_size": options.batch, "forms": time_programs(programs, options)}
        jax.clear_caches()


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a model."""
    headings = [
        "model",
        "batch",
        "compile s, unrolled",
        "scanned",
        "step ms, unrolled",
        "scanned",
        "× as slow",
    ]
    rows = []
    for cell in cells:
        compiled = [f"{add_seconds(form):.1f}" for form in cell["forms"]]
        steps = [form["median_ms"] for form in cell["forms"]]
        slower = format_ratio(steps[1] / steps[0])
        rows.append([cell["model"], str(cell["batch_size"]), *compiled, *map(format_short, steps), slower])
    return [Table("Blocks one after another, and as one loop", headings, rows)]


BENCHMARK = Benchmark(
    measure, tabulate, ("model", "batch_size"),
    options=(
        choose_names("models", DEPTHS, "Models."),
        Option("batch", "Images.", 32, 2, read_count, metavar="N"),
        Option("dtype", "The type to compute in.", DTYPES[0], choices=DTYPES, metavar="DTYPE"),
        *time_by(3, 0.3, 8),
    ),
)  # fmt: skip
