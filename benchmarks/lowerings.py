"""Every form of convolutions, of their gradients and of poolings against XLA's own, in one run.

    python benchmarks/lowerings.py [--batch 1 16 128] [--sites resnet20 pool ...] [--repeats 7]

Writes benchmarks/results/lowerings-DEVICE.json and a plot of the speed-ups beside it. What
`jaxaccel.transforms.lowering` chooses is marked `*`; where another form is 10% faster or more, the line is marked.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sites import SITES
from train_step import measure

from jaxaccel.core import runtime
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.choose import LOWERINGS, choose, compute, list_forms

SLOWER = 1.1
LIMIT = 3e8
"""Elements of an operand above which a case is left out: it would not fit beside the others."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation of a program."""

    name: str
    primitive: Any
    params: Mapping[str, Any]
    shapes: tuple[Any, ...]

    def contender(self, form: str) -> Callable[..., jax.Array]:
        """The operation in that form."""
        return lambda *operands: compute(self.primitive.name, self.params, operands, form)


class Compiled:
    """One form compiled: a contender of `train_step.measure`."""

    def __init__(self, name: str, f: Callable[..., jax.Array], operands: Sequence[jax.Array]) -> None:
        self.name, self.group = name, "form"
        self._operands = operands
        self._call = jax.jit(f).lower(*operands).compile()

    def output(self) -> np.ndarray:
        """Of one call."""
        return np.asarray(self._call(*self._operands))

    def run(self, steps: int) -> float:
        """Seconds a call over `steps` calls after one that does not count."""
        self._call(*self._operands).block_until_ready()
        start = time.perf_counter()
        for _ in range(steps):
            self._call(*self._operands).block_until_ready()
        return (time.perf_counter() - start) / steps


def cases(batch_size: int, words: Sequence[str]) -> Iterator[Case]:
    """Convolutions of well-known networks with both gradients, and poolings with theirs."""
    for site in SITES:
        if site.name.startswith("conv") and any(word in site.name for word in words):
            x, w = _shape(batch_size, *site.inputs), _shape(*site.weights)
            y = jax.eval_shape(site.f, w, x)
            yield _last(site.name, site.f, w, x)
            yield _last(
                f"{site.name}, input gradient", lambda w, g, f=site.f, x=x: _pull(f, 1, w, x, g), w, y
            )
            yield _last(
                f"{site.name}, weight gradient", lambda x, g, f=site.f, w=w: _pull(f, 0, w, x, g), x, y
            )
    for name, size, channels, window, stride in (
        ("pool 2x2", 28, 32, 2, 2), ("pool 2x2", 14, 64, 2, 2), ("pool 2x2", 32, 64, 2, 2),
        ("pool 3x3 stride 2", 112, 64, 3, 2), ("pool 3x3 stride 2", 32, 32, 3, 2), ("pool 7x7", 7, 512, 7, 1),
    ):  # fmt: skip
        if not any(word in name for word in words):
            continue
        x = _shape(batch_size, size, size, channels)
        padding = "VALID" if window in (2, 7) else "SAME"
        window_, strides = (1, window, window, 1), (1, stride, stride, 1)

        def largest(x: Any, w: Any = window_, s: Any = strides, p: str = padding) -> Any:
            return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, w, s, p)

        def total(x: Any, w: Any = window_, s: Any = strides, p: str = padding) -> Any:
            return jax.lax.reduce_window(x, 0.0, jax.lax.add, w, s, p)

        y = jax.eval_shape(largest, x)
        label = f"{name} {size}x{size}x{channels}"
        yield _last(f"max {label}", largest, x)
        yield _last(f"max {label}, gradient", lambda x, g, f=largest: jax.vjp(f, x)[1](g)[0], x, y)
        yield _last(f"sum {label}", total, x)
        yield _last(f"sum {label}, gradient", lambda x, g, f=total: jax.vjp(f, x)[1](g)[0], x, y)


def _pull(f: Callable[..., Any], argument: int, w: Any, x: Any, g: Any) -> Any:
    """The gradient of f(w, x) by one argument, given as a shape: its value does not matter."""
    zeros = jnp.zeros(w.shape if argument == 0 else x.shape)
    one = (lambda a: f(a, x)) if argument == 0 else (lambda a: f(w, a))
    return jax.vjp(one, zeros)[1](g)[0]


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _last(name: str, f: Callable[..., Any], *shapes: Any) -> Case:
    """The last of the operations in `f` that have forms."""
    eqns = [e for e in jax.make_jaxpr(f)(*shapes).eqns if e.primitive.name in LOWERINGS]
    operands = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqns[-1].invars)
    return Case(name, eqns[-1].primitive, eqns[-1].params, operands)


def timed(case: Case, batch_size: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """All forms of one case, compared with XLA's and timed in turns; None where it is too large."""
    if max(math.prod(s.shape) for s in case.shapes) > LIMIT:
        return None
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.standard_normal(s.shape, np.float32)) for s in case.shapes]
    forms = list_forms(case.primitive.name, case.params, case.shapes)
    entries = [Compiled(form, case.contender(form), operands) for form in forms]
    reference = entries[0].output()
    scale = np.linalg.norm(reference)
    errors = [float(np.linalg.norm(entry.output() - reference) / scale) for entry in entries]
    rows = measure(entries, options.repeats, options.seconds, options.budget)
    for row, error in zip(rows, errors, strict=True):
        row |= {"speed_up": rows[0]["median_ms"] / row["median_ms"], "relative_error": error}
    choice, _ = choose(case.primitive.name, case.params, case.shapes)
    times = {row["name"]: row["median_ms"] for row in rows}
    return {
        "case": case.name, "batch_size": batch_size, "operation": case.primitive.name,
        "shapes": [list(s.shape) for s in case.shapes], "choice": choice,
        "fastest": min(times, key=times.__getitem__),
        "choice_over_fastest": times[choice] / min(times.values()), "forms": rows,
    }  # fmt: skip


def table(found: Sequence[dict[str, Any]], where: dict[str, Any]) -> Table:
    """One line a case: milliseconds of each form."""
    names = list(dict.fromkeys(row["name"] for entry in found for row in entry["forms"]))
    shown = Table(title=f"Milliseconds, {where['device_kind']} ({where['cpu']})")
    for heading in ("case", "batch", *names, "choice / fastest"):
        shown.add_column(heading, justify="left" if heading == "case" else "right")
    for entry in found:
        times = {row["name"]: row["median_ms"] for row in entry["forms"]}
        slower = entry["choice_over_fastest"] > SLOWER
        cells = [
            f"{times[name]:.3g}{'*' if name == entry['choice'] else ''}" if name in times else "-"
            for name in names
        ]
        cost = f"{entry['choice_over_fastest']:.2f}" if slower else ""
        style = "yellow" if slower else None
        shown.add_row(entry["case"], str(entry["batch_size"]), *cells, cost, style=style)
    return shown


def plot(found: Sequence[dict[str, Any]], where: dict[str, Any], file: Path) -> None:
    """Speed-up over XLA's own form of each other form; a ring marks the choice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2 + 0.17 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    names = [n for n in dict.fromkeys(r["name"] for e in found for r in e["forms"]) if n != XLA]
    for name in names:
        points = [(r["speed_up"], i) for i, e in enumerate(found) for r in e["forms"] if r["name"] == name]
        axes.scatter(*zip(*points, strict=True), s=22, label=name)
    picks = [
        (next(r["speed_up"] for r in e["forms"] if r["name"] == e["choice"]), i) for i, e in enumerate(found)
    ]
    axes.scatter(*zip(*picks, strict=True), s=80, facecolors="none", edgecolors="black", label="chosen")
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks(range(len(found)), [f"{e['case']}  batch {e['batch_size']}" for e in found], fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"times as fast as XLA's own form on {where['device_kind']} ({where['cpu']})")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batch", nargs="+", type=int, default=[1, 16, 128], help="batch sizes (default: 1 16 128)")
    add("--sites", nargs="+", default=[""], metavar="WORD", help="those whose names hold one of these words")
    add("--repeats", type=int, default=5, help="turns of each form (default: 5)")
    add("--seconds", type=float, default=0.05, help="about how long one turn takes (default: 0.05)")
    add("--budget", type=float, default=3.0, help="seconds for the turns of one case (default: 3)")
    add("--out", type=Path, default=record.RESULTS, help="where the record goes")
    options = parser.parse_args()
    runtime.setup()
    where, console, found = record.machine(), Console(), []
    todo = [(case, b) for b in options.batch for case in cases(b, options.sites)]
    if not todo:
        parser.error(f"no site's name holds {' or '.join(options.sites)}")
    for case, batch_size in track(todo, "cases", console=console):
        entry = timed(case, batch_size, options)
        if entry:
            found.append(entry)
    file = options.out / record.path("lowerings", where).name
    record.write(file, {"machine": where, "repeats": options.repeats, "cases": found})
    plot(found, where, file.with_suffix(".png"))
    Console(width=max(140, console.width)).print(table(found, where))
    console.print(f"written to {file} and {file.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
