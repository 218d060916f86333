"""Times every form of convolutions, of their gradients and of poolings against XLA's own.

    python -m benchmarks lowerings                                    # batches of 1, 16 and 128: an hour and more
    python -m benchmarks lowerings --batch 16 128 --sites resnet20 pool

Each form is compared with XLA's own before it is timed. `*` stands at the form that `jaxaccel.transforms.lowering`
chooses.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plots
from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Mistake, Options, choose_batches, choose_words, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.sites import pick_sites
from benchmarks.tables import Table, format_ratio, format_short
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.choose import LOWERINGS, choose, compute, list_forms

SLOWER = 1.1
"""A choice that takes this many times as long as the fastest form is marked."""
MAX_NUMBERS = 3e8
"""Elements of an operand above which a case is left out: it would not fit beside the others."""
POOLS = (
    ("pool 2x2", 28, 32, 2, 2), ("pool 2x2", 14, 64, 2, 2), ("pool 2x2", 32, 64, 2, 2),
    ("pool 3x3 stride 2", 112, 64, 3, 2), ("pool 3x3 stride 2", 32, 32, 3, 2), ("pool 7x7", 7, 512, 7, 1),
)  # fmt: skip
"""Name, height and width, channels, window and stride."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation of a program."""

    name: str
    primitive: Any
    params: Mapping[str, Any]
    shapes: tuple[Any, ...]

    def compute(self, form: str, *operands: jax.Array) -> jax.Array:
        """Computes the operation in that form."""
        if form == XLA:
            return self.primitive.bind(*operands, **self.params)
        return compute(self.primitive.name, self.params, operands, form)


def list_cases(batch_size: int, words: Sequence[str]) -> Iterator[Case]:
    """Lists convolutions of well-known networks with both gradients, and poolings with theirs."""
    for site in pick_sites(words, "conv"):
        x, w = make_shape(batch_size, *site.inputs), make_shape(*site.weights)
        y = jax.eval_shape(site.f, w, x)
        yield find_last(site.name, site.f, w, x)
        pull = partial(pull_back, site.f, 1)
        yield find_last(f"{site.name}, input gradient", lambda w, g, x=x, pull=pull: pull(w, x, g), w, y)
        pull = partial(pull_back, site.f, 0)
        yield find_last(f"{site.name}, weight gradient", lambda x, g, w=w, pull=pull: pull(w, x, g), x, y)
    for name, size, channels, window, stride in POOLS:
        if not any(word in name for word in words):
            continue
        x = make_shape(batch_size, size, size, channels)
        window_, strides = (1, window, window, 1), (1, stride, stride, 1)
        padding = "VALID" if window in (2, 7) else "SAME"
        for kind, start, combine in (("max", -jnp.inf, jax.lax.max), ("sum", 0.0, jax.lax.add)):

            def pool(
                x: Any, i: Any = start, c: Any = combine, w: Any = window_, s: Any = strides, p: str = padding
            ):
                return jax.lax.reduce_window(x, i, c, w, s, p)

            label = f"{kind} {name} {size}x{size}x{channels}"
            yield find_last(label, pool, x)
            gradient = jax.eval_shape(pool, x)
            yield find_last(f"{label}, gradient", lambda x, g, f=pool: jax.vjp(f, x)[1](g)[0], x, gradient)


def pull_back(f: Callable[..., Any], argument: int, w: Any, x: Any, g: Any) -> Any:
    """Pulls g back to one argument of f(w, x), which is given as a shape: its value does not matter."""
    zeros = jnp.zeros(w.shape if argument == 0 else x.shape)
    one = (lambda a: f(a, x)) if argument == 0 else (lambda a: f(w, a))
    return jax.vjp(one, zeros)[1](g)[0]


def make_shape(*sizes: int) -> jax.ShapeDtypeStruct:
    """Makes the shape of a float32 array."""
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def find_last(name: str, f: Callable[..., Any], *shapes: Any) -> Case:
    """Finds the last of the operations in `f` that have other forms."""
    eqns = [e for e in jax.make_jaxpr(f)(*shapes).eqns if e.primitive.name in LOWERINGS]
    operands = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqns[-1].invars)
    return Case(name, eqns[-1].primitive, eqns[-1].params, operands)


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each operation and batch size."""
    todo = [(case, size) for size in options.batch for case in list_cases(size, options.sites)]
    if not todo:
        raise Mistake(f"--sites: no site's name holds {' or '.join(options.sites)}")
    for case, batch_size in todo:
        if max(math.prod(shape.shape) for shape in case.shapes) <= MAX_NUMBERS:
            yield measure_cell(case, batch_size, options)


def measure_cell(case: Case, batch_size: int, options: Options) -> Cell:
    """Compares all forms of one case with XLA's, and times them in turns."""
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.standard_normal(s.shape, np.float32)) for s in case.shapes]
    forms = list_forms(case.primitive.name, case.params, case.shapes)
    calls = {
        form: partial(jax.jit(partial(case.compute, form)).lower(*operands).compile(), *operands)
        for form in forms
    }
    reference = np.asarray(calls[XLA]())
    errors = {
        form: float(np.linalg.norm(np.asarray(call()) - reference) / np.linalg.norm(reference))
        for form, call in calls.items()
    }
    turns = {form: run_repeatedly(call) for form, call in calls.items()}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = [
        {"name": form, "rounds": len(found), **summarize_times(found),
         "speed_up": times.gain(form, XLA).ratio, "relative_error": errors[form]}
        for form, found in times.rounds.items()
    ]  # fmt: skip
    choice, _ = choose(case.primitive.name, case.params, case.shapes)
    fastest = times.fastest()
    return {
        "case": case.name, "batch_size": batch_size, "operation": case.primitive.name,
        "shapes": [list(s.shape) for s in case.shapes], "choice": choice, "fastest": fastest,
        "choice_over_fastest": times.median(choice) / times.median(fastest), "forms": rows,
    }  # fmt: skip


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a case: milliseconds of each form."""
    names = list(dict.fromkeys(row["name"] for cell in cells for row in cell["forms"]))
    rows = []
    for cell in cells:
        forms = {row["name"]: row for row in cell["forms"]}
        times = [format_time(forms.get(name), cell["choice"]) for name in names]
        gain = format_ratio(forms[cell["choice"]]["speed_up"]) if cell["choice"] != XLA else ""
        cost = format_ratio(cell["choice_over_fastest"]) if cell["choice_over_fastest"] > SLOWER else ""
        rows.append([cell["case"], format_shapes(cell), *times, gain, cost])
    slower = sum(cell["choice_over_fastest"] > SLOWER for cell in cells)
    note = (
        f"**Another form is faster by more than {SLOWER - 1:.0%} in {slower} of {len(cells)} cases**: the last "
        "column has the time of the choice (`*`) over that of the fastest."
    )
    headings = ["operation", "shapes", *names, "choice × xla", "choice / fastest"]
    return [Table("Milliseconds of each form", headings, rows, words=2, notes=[note])]


def format_time(row: Cell | None, choice: str) -> str:
    """Formats the milliseconds of a form."""
    return f"{format_short(row['median_ms'])}{'*' if row['name'] == choice else ''}" if row else ""


def format_shapes(cell: Cell) -> str:
    """Formats the shapes of the operands."""
    return ", ".join("×".join(map(str, shape)) for shape in cell["shapes"])


def plot(cells: Sequence[Cell], machine: Mapping[str, Any], file: Path) -> None:
    """Draws the speed-up over XLA's own form of each other form."""
    labels = [f"{cell['case']}  batch {cell['batch_size']}" for cell in cells]
    title = f"times as fast as XLA's own form on {machine['device_kind']} ({machine['cpu']})"
    plots.scatter_forms(file, labels, cells, XLA, title)


BENCHMARK = Benchmark(
    measure, tabulate, ("case", "batch_size"), prepare=set_up_trainer, plot=plot,
    options=(
        choose_words("Operations whose names hold one of these words (default: all)."),
        choose_batches(1, 16, 128, quick=(1,)),
        *time_by(5, 0.05, 3),
    ),
)  # fmt: skip
