"""Counts what each model costs: parameters, multiply-adds, seconds to compile, images a second.

    python -m benchmarks models                                       # one or two models of each family
    python -m benchmarks models --models resnet50 vit_s16 --batch 16 --dtypes float32 bfloat16

Both programs of a model, inference and a training step, go through `ja.retarget`. Weights are random and a batch
lies on the device. On a CPU a batch is 4 images by default, so that all ends in time; larger ones are faster.
"""

from collections.abc import Iterator, Sequence

import jax
from flax import nnx

from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, read_count, time_by
from benchmarks.programs import make_programs, time_programs
from benchmarks.records import Cell
from benchmarks.tables import Table, format_short
from jaxaccel import models
from jaxaccel.models.layers import counts

NAMES = tuple(
    name
    for name in dir(models)
    if name[0].islower() and getattr(models, name).__module__.startswith("jaxaccel.models.vision.")
)
"""All networks for images, by the name of the function that makes each."""
SIDES = {
    "efficientnet_v2_s": 384, "inception_v3": 299, "resnet_rs50": 160,
    **dict.fromkeys(("cifar_fast", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), 32),
}  # fmt: skip
"""Height and width of the images that a model is made for, where it is not 224."""
FAMILIES = (
    "cifar_fast", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mixer_s16",
    "mobilenet_v2", "mobilenet_v3_small", "resnet20", "resnet50", "se_resnet50", "vit_s16",
)  # fmt: skip
"""One or two of each family: the time goes to compiling."""
DTYPES = ("float32", "bfloat16")


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each model."""
    on_cpu = jax.default_backend() == "cpu"
    # A CPU compiles two programs a model in the time that there is, not four.
    options.dtypes = options.dtypes or DTYPES[: 1 if on_cpu else 2]
    options.batch = options.batch or (4 if on_cpu else 128)
    for name in options.models:
        yield measure_cell(name, options)
        jax.clear_caches()


def measure_cell(name: str, options: Options) -> Cell:
    """Measures one model."""
    factory, side = getattr(models, name), options.image_size or SIDES.get(name, 224)
    sized = {"image_size": side} if name.startswith(("vit", "mixer")) else {}
    shapes = nnx.eval_shape(lambda: factory(**sized, rngs=nnx.Rngs(0)))
    programs = [
        program
        for dtype in options.dtypes
        for program in make_programs(factory, side, options.batch, dtype, ("infer", "train"))
    ]
    rows = time_programs(programs, options)
    for row in rows:
        row["images_per_second"] = 1e3 * options.batch / row["median_ms"]
    return {
        "model": name, "image_size": side, "batch_size": options.batch, "parameters": counts.count_parameters(shapes),
        "multiply_adds": counts.count_multiply_adds(shapes, (side, side, 3)), "programs": rows,
    }  # fmt: skip


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a model."""
    names = list(dict.fromkeys(row["name"] for cell in cells for row in cell["programs"]))
    headings = ["model", "image", "batch", "parameters", "multiply-adds", "compile s (infer, train)"]
    rows = []
    for cell in cells:
        found = {row["name"]: row for row in cell["programs"]}
        compiled = [add_seconds(row) for name, row in found.items() if name.endswith(names[0].split()[-1])]
        rows.append(
            [cell["model"], f"{cell['image_size']}²", str(cell["batch_size"]), f"{cell['parameters'] / 1e6:.2f} M",
             f"{cell['multiply_adds'] / 1e9:.3g} G", ", ".join(f"{s:.1f}" for s in compiled),
             *(format_short(found[name]["images_per_second"]) if name in found else "" for name in names)]
        )  # fmt: skip
    return [Table("What models cost", [*headings, *(f"{name}, images/s" for name in names)], rows)]


def add_seconds(program: Cell) -> float:
    """Adds the seconds from the functions to a program that runs."""
    return program["trace_seconds"] + program["compile_seconds"]


BENCHMARK = Benchmark(
    measure, tabulate, ("model", "image_size", "batch_size"),
    options=(
        Option("models", "Models, of `jaxaccel.models` (default: one or two of each family).", FAMILIES,
               ("resnet20",), choices=NAMES, several=True, metavar="NAME"),
        Option("batch", "Images (default: 4 on a CPU, else 128).", quick=2, type=read_count, metavar="N"),
        Option("image_size", "Height and width (default: those that the model is made for).", quick=8,
               type=read_count, metavar="N"),
        Option("dtypes", "Types to compute in (default: float32 on a CPU, else both).", choices=DTYPES,
               several=True, metavar="DTYPE"),
        *time_by(3, 0.3, 8),
    ),
)  # fmt: skip
