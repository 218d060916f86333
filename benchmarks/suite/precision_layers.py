"""Times single matrix products and convolutions in float32, bfloat16 and every int8 form.

    python -m benchmarks precision_layers                             # 42 sites, batches of 1 and 16
    python -m benchmarks precision_layers --sites resnet20 NCHW --batch 1

An int8 form includes what surrounds it in `ja.int8`: quantizing the inputs, and scaling the sums. `*` stands at the
form that `ja.int8` takes; "wrong" at a result that is not float32's.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxaccel as ja
from benchmarks import plots
from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Option, Options, choose_batches, choose_words, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.sites import Site, pick_sites
from benchmarks.tables import Table, format_ratio, format_short
from benchmarks.variants import LIMITS, Compiled, Variant, measure_error
from jaxaccel.core import numerics
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.transforms import int8_products
from jaxaccel.transforms.lowering import convolution
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.int8_forms import IntegerProduct, choose_int8_form
from jaxaccel.transforms.lowering.matmul import is_vector

TWO_ROWS = "int8, a vector as two rows"
FORMS = ("matmul", "patches", "space to depth", "channels last")
SLOWER = 1.1
"""A choice that takes this many times as long as the fastest form is marked."""


@dataclasses.dataclass(frozen=True)
class Traced:
    """A site at one batch size, with its one product as the primitive that a rule is asked about."""

    f: Callable[[jax.Array, jax.Array], jax.Array]
    """(weights, inputs) -> outputs."""
    primitive: Any
    params: Mapping[str, Any]
    weight: jax.Array
    x: jax.Array

    @property
    def is_dot(self) -> bool:
        """Whether it is a matrix product, else a convolution."""
        return self.primitive.name == "dot_general"

    def bind(self, *values: Any, **changed: Any) -> jax.Array:
        """Computes it as XLA does."""
        return self.primitive.bind(*values, **{**self.params, **changed})

    def bind_two_rows(self, *values: Any, **changed: Any) -> jax.Array:
        """Computes a vector's product as that of two rows."""
        return IntegerProduct("cpu")(self.primitive, {**self.params, **changed}, *values)

    def bind_form(self, form: str, lhs: jax.Array, rhs: jax.Array, **changed: Any) -> jax.Array:
        """Computes a convolution in another form."""
        return convolution.convolve({**self.params, **changed}, (lhs, rhs), form)


def trace_site(site: Site, batch_size: int) -> Traced:
    """Traces a site on random arrays."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch_size, *site.inputs))
    weight = jax.random.normal(keys[1], site.weights)
    (equation,) = jax.make_jaxpr(site.f)(weight, x).eqns
    return Traced(site.f, equation.primitive, equation.params, weight, x)


def make_forms(t: Traced, activations: str) -> Iterator[Variant]:
    """Yields every form that the site can take, float32 first."""
    yield Variant("float32", "form", "float32", t.f, t.weight)
    yield Variant("bfloat16", "form", "bfloat16", ja.bfloat16(t.f, lowering="bfloat16"), t.weight)
    channels = -1 if t.is_dot else t.params["dimension_numbers"].rhs_spec[0]
    quantized = ja.quantize(t.weight, where=lambda _: True, channels=channels)
    scale = numerics.scale_of(jnp.max(jnp.abs(t.x))) if activations == "static" else None
    for form in list_forms(t):
        yield Variant(form, "form", "int8", multiply_integers(t, form, scale), quantized)


def list_forms(t: Traced) -> list[str]:
    """Lists the int8 forms that give its result and may pay."""
    if t.is_dot:
        return ["int8"] + [TWO_ROWS] * is_vector(t.params, t.x.shape, t.weight.shape)
    found = convolution.list_forms(t.params, t.x.shape, t.weight.shape, integers=True)
    return ["int8", *(f"int8 as {form}" for form in found if form in FORMS)]


def multiply_integers(t: Traced, form: str, scale: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """Multiplies as `ja.int8` does in that form: quantize the inputs, multiply integers, scale."""
    bind = t.bind_two_rows if form == TWO_ROWS else t.bind
    if form.startswith("int8 as "):
        bind = partial(t.bind_form, form.removeprefix("int8 as "))

    def f(weight: Any, x: jax.Array) -> jax.Array:
        xq = int8_products.quantize_operand(x, t.primitive.name, t.params, 0, scale)
        return int8_products.multiply_integers(t.primitive.name, t.params, bind, xq, weight)

    return f


def find_choice(t: Traced) -> tuple[str, str]:
    """Finds the form that `ja.int8` takes here, and its reason."""
    if t.is_dot:
        return list_forms(t)[-1], ""
    form, reason = choose_int8_form(t.params, t.x, t.weight, jax.default_backend())
    return {"float32": form, XLA: "int8"}.get(form, f"int8 as {form}"), reason


def judge_choice(rows: Sequence[Cell], choice: str) -> Cell:
    """Judges what the choice costs: its time over that of the fastest of float32 and the int8 forms that are right."""
    times = {row["name"]: row["median_ms"] for row in rows if row["name"] != "bfloat16"}
    right = [row["name"] for row in rows if row["name"] in times and row["right"]]
    fastest = min(right, key=times.__getitem__)
    cost = times[choice] / times[fastest]
    return {"choice": choice, "fastest": fastest, "choice_over_fastest": cost, "slower": cost > SLOWER}


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each site and batch size."""
    for site in pick_sites(options.sites):
        for batch_size in options.batch:
            yield measure_cell(site, batch_size, options)


def measure_cell(site: Site, batch_size: int, options: Options) -> Cell:
    """Compares all forms of one site with float32, and times them in turns."""
    t = trace_site(site, batch_size)
    programs = [Compiled(variant, t.x) for variant in make_forms(t, options.activations)]
    reference = programs[0].output()
    turns = {program.name: run_repeatedly(program.call) for program in programs}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = []
    for program in programs:
        error, found = measure_error(program.output(), reference), times.rounds[program.name]
        rows.append(
            {"name": program.name, "rounds": len(found), **summarize_times(found),
             "speed_up": times.gain(program.name, "float32").ratio, "relative_error": error,
             "compiled_share": program.count_compiled_share(), "right": error <= LIMITS[program.dtype]}
        )  # fmt: skip
    choice, reason = find_choice(t)
    return {
        "site": site.name, "batch_size": batch_size, "activations": options.activations,
        "operation": t.primitive.name, "shapes": [list(t.x.shape), list(t.weight.shape)], "reason": reason,
        **judge_choice(rows, choice), "forms": rows,
    }  # fmt: skip


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a site and batch size: milliseconds of each form."""
    names = list(dict.fromkeys(row["name"] for cell in cells for row in cell["forms"]))
    rows = []
    for cell in cells:
        forms = {row["name"]: row for row in cell["forms"]}
        times = [format_time(forms.get(name), cell["choice"]) for name in names]
        cost = format_ratio(cell["choice_over_fastest"]) if cell["slower"] else ""
        rows.append([cell["site"], str(cell["batch_size"]), *times, cell["fastest"], cost])
    slower = sum(cell["slower"] for cell in cells)
    note = (
        f"**Another form is faster by more than {SLOWER - 1:.0%} at {slower} of {len(cells)} sites**: the last column "
        "has the time of the choice (`*`) over that of the fastest of float32 and the int8 forms."
    )
    headings = ["site", "batch", *names, "fastest", "choice / fastest"]
    return [Table("Milliseconds of single products", headings, rows, notes=[note])]


def format_time(row: Cell | None, choice: str) -> str:
    """Formats the milliseconds of a form."""
    if row is None:
        return ""
    wrong, star = "" if row["right"] else " wrong", "*" if row["name"] == choice else ""
    return f"{format_short(row['median_ms'])}{wrong}{star}"


def plot(cells: Sequence[Cell], machine: Mapping[str, Any], file: Path) -> None:
    """Draws the speed-up over float32 of each form at each site."""
    shapes = [["×".join(map(str, shape)) for shape in cell["shapes"]] for cell in cells]
    labels = [f"{cell['site']}  {x} * {w}" for cell, (x, w) in zip(cells, shapes, strict=True)]
    title = f"times as fast as float32 on {machine['device_kind']} ({machine['cpu']})"
    plots.scatter_forms(file, labels, cells, "float32", title)


BENCHMARK = Benchmark(
    measure, tabulate, ("site", "batch_size", "activations"), prepare=set_up_trainer, plot=plot,
    options=(
        choose_words("Sites whose names hold one of these words (default: all)."),
        choose_batches(1, 16, quick=(2,)),
        Option("activations", "Whether inputs are quantized as they come or at a scale known beforehand.", "dynamic",
               choices=("dynamic", "static"), metavar="HOW"),
        *time_by(15, 0.2),
    ),
)  # fmt: skip
