"""Size, cost and speed of each model of `jaxaccel.models`, and what scanning equal blocks does to the time to compile.

    python benchmarks/models.py [--models resnet50 ...] [--batch 4] [--image-size 224] [--dtypes float32 bfloat16]
    python benchmarks/models.py --scan
    python benchmarks/models.py --docs

`--docs` measures nothing: it writes the tables of docs/guides/models.md from the JSON. README.md says what is measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import record
from flax import nnx
from rich.console import Console
from rich.table import Table
from train_step import measure

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core import runtime
from jaxaccel.core.trees import path_text
from jaxaccel.models import adapter as modules
from jaxaccel.models.layers import counts

DOCS = Path(__file__).parents[1] / "docs" / "guides" / "models.md"
NAMES = tuple(name for name in models.__all__ if name[0].islower())
SIDES = {
    "efficientnet_v2_s": 384, "inception_v3": 299, "resnet_rs50": 160,
    **dict.fromkeys(("cifar_fast", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), 32),
}  # fmt: skip
"""Height and width of the images that a model is made for, where it is not 224."""
DEFAULT = (
    *(
        "cifar_fast",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "mixer_s16",
        "mobilenet_v2",
    ),
    *("mobilenet_v3_small", "resnet20", "resnet50", "se_resnet50", "vit_s16"),
)
"""One or two of each family: the time goes to compiling."""
DEPTHS = {
    "resnet20": models.resnet20,
    "resnet110": models.resnet110,
    **{
        f"vit, {depth} blocks": partial(
            models.VisionTransformer, width=192, depth=depth, heads=3, patch_size=4, image_size=32
        )
        for depth in (12, 48)
    },
}
"""What --scan compiles: CIFAR ResNets, and Transformers as wide as ViT-Ti on images of 32x32."""


class Program:
    """One way to run a model, compiled: a contender of `train_step.measure`."""

    group = "jaxaccel"

    def __init__(self, name: str, step: Callable[..., Any], state: Any, *inputs: jax.Array) -> None:
        """`step` takes (state, *inputs); where it trains it returns the next state, else any array."""
        self.name = name
        self._state, self._inputs = jax.device_put((state, inputs))
        start = time.perf_counter()
        lowered = jax.jit(step).lower(self._state, *self._inputs)
        self.trace_seconds = time.perf_counter() - start
        self._call = lowered.compile()
        self.compile_seconds = time.perf_counter() - start - self.trace_seconds

    def run(self, steps: int) -> float:
        """Seconds a call, over `steps` calls after one that does not count."""
        jax.block_until_ready(self._call(self._state, *self._inputs))
        start = time.perf_counter()
        for _ in range(steps):
            jax.block_until_ready(self._call(self._state, *self._inputs))
        return (time.perf_counter() - start) / steps


def programs(
    factory: Callable[..., nnx.Module], side: int, batch_size: int, dtype: str, what: Sequence[str]
) -> Iterator[Program]:
    """Inference and a training step (cross entropy, SGD with momentum), each retargeted to this backend."""
    shape = (batch_size, side, side, 3)
    model = modules.as_model(factory, {"image_size": side}, (jax.ShapeDtypeStruct(shape, jnp.float32),))
    params, state = weights(modules.abstract(model))
    x = jax.random.normal(jax.random.key(1), shape)
    labels = jnp.arange(batch_size) % 10
    optimizer = optax.sgd(1e-3, momentum=0.9)
    narrow = ja.bfloat16 if dtype == "bfloat16" else lambda f: f

    def infer(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(*variables, x, key=jax.random.key(0), train=False)[0]

    def loss(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = model.apply(params, state, x, key=jax.random.key(0), train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    def train(variables: Any, x: jax.Array, labels: jax.Array) -> Any:
        params, state, moments = variables
        (_, state), gradients = jax.value_and_grad(narrow(loss), has_aux=True)(params, state, x, labels)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), state, moments

    if "infer" in what:
        yield Program(f"infer {dtype}", ja.retarget(narrow(infer)), (params, state), x)
    if "train" in what:
        moments = optimizer.init(params)
        yield Program(f"train {dtype}", ja.retarget(train), (params, state, moments), x, labels)


def weights(shapes: Any) -> Any:
    """Random arrays of these shapes: initialising would have to be compiled, and the numbers do not matter.

    Kernels are so small that activations stay finite, scales and variances 1.
    """

    def one(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if path_text(path).rsplit("/", 1)[-1] in ("scale", "var"):
            return np.ones(shape.shape, shape.dtype)
        rng = np.random.default_rng(len(path_text(path)))
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return rng.standard_normal(shape.shape, np.float32).astype(shape.dtype) / fan_in**0.5

    return jax.tree_util.tree_map_with_path(one, shapes)


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All that is kept of one model."""
    factory, side = getattr(models, name), options.image_size or SIDES.get(name, 224)

    sized = {"image_size": side} if name.startswith(("vit", "mixer")) else {}
    shapes = nnx.eval_shape(lambda: factory(**sized, rngs=nnx.Rngs(0)))
    entries = [
        program
        for dtype in options.dtypes
        for program in programs(factory, side, options.batch, dtype, ("infer", "train"))
    ]
    timed = measure(entries, options.rounds, options.seconds, options.budget)
    return {
        "model": name,
        "image_size": side,
        "batch_size": options.batch,
        "parameters": counts.parameters(shapes),
        "multiply_adds": counts.multiply_adds(shapes, (side, side, 3)),
        "programs": [
            timing
            | {
                "trace_seconds": entry.trace_seconds,
                "compile_seconds": entry.compile_seconds,
                "images_per_second": options.batch / timing["median_ms"] * 1e3,
            }
            for entry, timing in zip(entries, timed, strict=True)
        ],
    }


def depth_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to compile a training step, and its milliseconds, with the blocks unrolled and scanned."""
    entries = []
    for form, scan in (("unrolled", False), ("scanned", True)):
        factory = partial(DEPTHS[name], scan=scan)
        (program,) = programs(factory, 32, options.batch, options.dtypes[0], ("train",))
        program.name = form
        entries.append(program)
    timed = measure(entries, options.rounds, options.seconds, options.budget)
    return {
        "model": name,
        "batch_size": options.batch,
        "forms": [
            timing | {"trace_seconds": entry.trace_seconds, "compile_seconds": entry.compile_seconds}
            for entry, timing in zip(entries, timed, strict=True)
        ],
    }


def short(x: float) -> str:
    """Three digits, and no exponent."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of models: headings, then one line each."""
    names = [program["name"] for program in rows[0]["programs"]]
    headings = ["model", "image", "parameters", "multiply-adds", "compile s (infer, train)"]
    lines = [[*headings, *(f"{name}, images/s" for name in names)]]
    for entry in rows:
        by_name = {program["name"]: program for program in entry["programs"]}
        compiled = [_ready(by_name[n]) for n in names if n.endswith(names[0].split()[-1])]
        lines.append(
            [
                entry["model"], f"{entry['image_size']}²", f"{entry['parameters'] / 1e6:.2f} M",
                f"{entry['multiply_adds'] / 1e9:.3g} G", ", ".join(f"{s:.1f}" for s in compiled),
                *(short(by_name[name]["images_per_second"]) for name in names),
            ]
        )  # fmt: skip
    return lines


def depth_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of --scan, likewise."""
    lines = [["model", "compile s, unrolled", "scanned", "step ms, unrolled", "scanned", "× as slow"]]
    for entry in rows:
        plain, scanned = entry["forms"]
        lines.append(
            [
                entry["model"],
                *(f"{_ready(form):.1f}" for form in (plain, scanned)),
                *(short(form["median_ms"]) for form in (plain, scanned)),
                f"{scanned['median_ms'] / plain['median_ms']:.2f}",
            ]
        )
    return lines


def _ready(program: Mapping[str, Any]) -> float:
    """Seconds from the functions to a program that runs."""
    return program["trace_seconds"] + program["compile_seconds"]


TABLES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], list[list[str]]]] = {
    "models": cells,
    "models_scan": depth_cells,
}


def write_docs(folder: Path, docs: Path) -> None:
    """Rewrites each table of `docs`, between ``<!-- models-cpu -->`` and ``<!-- end of models-cpu -->``, say."""
    text = docs.read_text(encoding="utf-8")
    for name, lines in TABLES.items():
        for file in folder.glob(f"{name}-*.json"):
            kept = json.loads(file.read_text(encoding="utf-8"))
            text = replaced(text, file.stem, _markdown(kept, lines(kept["rows"])))
    docs.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, table: str) -> str:
    """`text` with `table` between its markers."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{DOCS.name} must have the lines {begin} and {end} once")
    return f"{text.partition(begin)[0]}{begin}\n{table}\n{end}{text.partition(end)[2]}"


def _markdown(kept: Mapping[str, Any], lines: Sequence[Sequence[str]]) -> str:
    where, batch_size = kept["machine"], kept["rows"][0]["batch_size"]
    versions = where["versions"]
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    ruler = "|---|" + "---:|" * (len(lines[0]) - 1)
    caption = (
        f"{where['device_kind']} ({where['cpu']}, {where['cores']} cores), JAX {versions['jax']}, "
        f"batches of {batch_size}, {where['date'][:10]}."
    )
    return "\n".join([head, ruler, *body, "", caption])


def show(title: str, lines: Sequence[Sequence[str]], console: Console) -> None:
    shown = Table(*lines[0], title=title)
    for line in lines[1:]:
        shown.add_row(*line)
    console.print(shown)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--models", nargs="+", help="names, or those of --scan (default: one or two of each family)")
    add("--batch", type=int, help="images (default: 4 on a CPU, else 128; --scan: 32)")
    add("--image-size", type=int, help="height and width (default: those that the model is made for)")
    add("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="(default: float32 on a CPU, else both)")
    add("--rounds", type=int, default=3, help="turns of each program (default: 3)")
    add("--seconds", type=float, default=0.3, help="about how long one turn takes (default: 0.3)")
    add("--budget", type=float, default=8, help="seconds for the rounds of one model (default: 8)")
    add(
        "--scan", action="store_true", help="training steps of deep models, their blocks unrolled and scanned"
    )
    add(
        "--docs", action="store_true", help="write the tables of docs/guides/models.md from the JSON, and end"
    )
    add(
        "--out", type=Path, default=record.RESULTS, help="directory of the JSON (default: benchmarks/results)"
    )
    options = parser.parse_args(argv)
    if options.docs:
        write_docs(options.out, DOCS)
        return 0
    if options.scan and (options.image_size or len(options.dtypes or []) > 1):
        parser.error(
            "--scan measures images of 32x32 in one dtype: leave out --image-size, name one of --dtypes"
        )
    known = tuple(DEPTHS) if options.scan else NAMES
    options.models = options.models or (known if options.scan else DEFAULT)
    if unknown := [name for name in options.models if name not in known]:
        parser.error(f"no model {', '.join(unknown)}: choose from {', '.join(known)}")
    options.batch = options.batch or (32 if options.scan else 4 if jax.default_backend() == "cpu" else 128)
    # A CPU compiles two programs a model in the time that there is, not four.
    options.dtypes = options.dtypes or ["float32", "bfloat16"][: 1 if jax.default_backend() == "cpu" else 2]
    runtime.keep_freed_memory()
    benchmark, one = ("models_scan", depth_row) if options.scan else ("models", row)
    where, rows = record.machine(), []
    # In a file or a pipe the table is as wide as it needs to be.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    file = options.out / record.path(benchmark, where).name
    for name in options.models:
        rows.append(one(name, options))
        record.write(file, {"machine": where, "rows": rows})
        console.print(TABLES[benchmark](rows)[-1])
    show(f"{benchmark}, {where['device_kind']}, batches of {options.batch}", TABLES[benchmark](rows), console)
    console.print(f"written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
