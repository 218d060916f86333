"""Single matrix products and convolutions in every form that `jaxaccel.transforms.lowering` has; for precision.py."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import record
from rich.console import Console
from rich.table import Table
from sites import SITES, Site
from train_step import measure
from variants import LIMITS, Compiled, Variant, relative_error

import jaxaccel as ja
from jaxaccel.core import numerics
from jaxaccel.transforms import integer
from jaxaccel.transforms.lowering import convolution
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.integer import IntegerProduct, choose_int8_form
from jaxaccel.transforms.lowering.matmul import is_vector

TWO_ROWS = "int8, a vector as two rows"
FORMS = ("matmul", "patches", "space to depth", "channels last")
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 4)
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

    def bind(self, *values: Any, **changed: Any) -> jax.Array:
        return self.primitive.bind(*values, **{**self.params, **changed})

    def two_rows(self, *values: Any, **changed: Any) -> jax.Array:
        return IntegerProduct()(self.primitive, {**self.params, **changed}, *values)

    def formed(self, form: str, lhs: jax.Array, rhs: jax.Array, **changed: Any) -> jax.Array:
        return convolution.convolve({**self.params, **changed}, (lhs, rhs), form)


def traced(site: Site, batch_size: int) -> Traced:
    """`site` on random arrays."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch_size, *site.inputs))
    weight = jax.random.normal(keys[1], site.weights)
    (equation,) = jax.make_jaxpr(site.f)(weight, x).eqns
    return Traced(site.f, equation.primitive, equation.params, weight, x)


def forms(t: Traced, static: bool) -> Iterator[Variant]:
    """Every form the site can take, float32 first."""
    yield Variant("float32", "form", "float32", t.f, t.weight)
    yield Variant("bfloat16", "form", "bfloat16", ja.bfloat16(t.f, lowering="bfloat16"), t.weight)
    dot = t.primitive.name == "dot_general"
    channels = -1 if dot else t.params["dimension_numbers"].rhs_spec[0]
    quantised = ja.quantize(t.weight, where=lambda _: True, channels=channels)
    scale = numerics.scale_of(jnp.max(jnp.abs(t.x))) if static else None
    for form in possible(t):
        yield Variant(form, "form", "int8", _integer(t, form, scale), quantised)


def possible(t: Traced) -> list[str]:
    """The int8 forms that give its result and may pay."""
    if t.primitive.name == "dot_general":
        return ["int8"] + [TWO_ROWS] * is_vector(t.params, t.x.shape, t.weight.shape)
    found = convolution.list_forms(t.params, t.x.shape, t.weight.shape, integers=True)
    return ["int8", *(f"int8 as {form}" for form in found if form in FORMS)]


def _integer(t: Traced, form: str, scale: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """As `ja.int8` computes it in that form: quantise the inputs, multiply integers, scale."""
    bind = t.two_rows if form == TWO_ROWS else t.bind
    if form.startswith("int8 as "):
        bind = partial(t.formed, form.removeprefix("int8 as "))

    def f(weight: Any, x: jax.Array) -> jax.Array:
        xq = integer.quantised(x, t.primitive.name, t.params, 0, scale)
        return integer.product(t.primitive.name, t.params, bind, xq, weight)

    return f


def chosen(t: Traced) -> tuple[str, str]:
    """(form, reason) that `ja.int8` takes here."""
    if t.primitive.name == "dot_general":
        return possible(t)[-1], ""
    form, reason = choose_int8_form(t.params, t.x, t.weight, jax.default_backend())
    return {"float32": form, XLA: "int8"}.get(form, f"int8 as {form}"), reason


def judged(rows: Sequence[dict[str, Any]], choice: str) -> dict[str, Any]:
    """What the choice costs: its time over that of the fastest of float32 and the int8 forms that are right."""
    times = {row["name"]: row["median_ms"] for row in rows if row["name"] != "bfloat16"}
    fastest = min(
        (row["name"] for row in rows if row["name"] in times and row["right"]), key=times.__getitem__
    )
    cost = times[choice] / times[fastest]
    return {"choice": choice, "fastest": fastest, "choice_over_fastest": cost, "slower": cost > SLOWER}


def timed(site: Site, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """All forms of one site, compared with float32 and timed in turns."""
    t = traced(site, batch_size)
    entries = [Compiled(variant, t.x) for variant in forms(t, options.static)]
    reference = entries[0].output()
    errors = [relative_error(entry.output(), reference) for entry in entries]
    rows = measure(entries, options.repeats, options.seconds, options.budget)
    for row, entry, error in zip(rows, entries, errors, strict=True):
        row |= {
            "speed_up": rows[0]["median_ms"] / row["median_ms"], "relative_error": error,
            "compiled_share": entry.compiled_share(), "right": error <= LIMITS[entry.dtype],
        }  # fmt: skip
    choice, reason = chosen(t)
    return {
        "site": site.name, "batch_size": batch_size, "operation": t.primitive.name,
        "shapes": [list(t.x.shape), list(t.weight.shape)], "reason": reason,
        **judged(rows, choice), "forms": rows,
    }  # fmt: skip


def layers(options: argparse.Namespace, console: Console) -> None:
    """Times all sites; writes the JSON and the plot."""
    where = record.machine()
    words = options.sites or [""]
    chosen = [site for site in SITES if any(word in site.name for word in words)]
    if not chosen:
        raise SystemExit(f"no site's name holds {' or '.join(words)}")
    found = [timed(site, batch_size, options) for site in chosen for batch_size in options.batch]
    file = options.out / record.path("precision_layers", where).name
    inputs = "static" if options.static else "dynamic"
    record.write(file, {"machine": where, "repeats": options.repeats, "activations": inputs, "sites": found})
    plot(found, where, file.with_suffix(".png"))
    console.print(table(found, where))
    console.print(f"written to {file} and {file.with_suffix('.png').name}")


def table(found: Sequence[dict[str, Any]], where: dict[str, Any]) -> Table:
    """One line a site and batch size: milliseconds of each form, `*` at the one that is chosen."""
    names = list(dict.fromkeys(row["name"] for entry in found for row in entry["forms"]))
    shown = Table(title=f"Milliseconds of single sites, {where['device_kind']} ({where['cpu']})")
    for heading in ("site", "batch", *names, "fastest", "choice / fastest"):
        shown.add_column(heading, justify="left" if heading in ("site", "fastest") else "right")
    for entry in found:
        rows = {row["name"]: row for row in entry["forms"]}
        cost = f"{entry['choice_over_fastest']:.2f}" if entry["slower"] else ""
        shown.add_row(
            entry["site"], str(entry["batch_size"]), *(_cell(rows.get(name), entry["choice"]) for name in names),
            entry["fastest"], cost, style="yellow" if entry["slower"] else None,
        )  # fmt: skip
    return shown


def _cell(row: dict[str, Any] | None, choice: str) -> str:
    if row is None:
        return "-"
    return f"{row['median_ms']:.3g}{'' if row['right'] else ' wrong'}{'*' if row['name'] == choice else ''}"


def plot(found: Sequence[dict[str, Any]], where: dict[str, Any], file: Path) -> None:
    """Speed-up over float32 of each form at each site; a ring marks the choice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2 + 0.22 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    names = [n for n in dict.fromkeys(r["name"] for e in found for r in e["forms"]) if n != "float32"]
    for name in names:
        points = [(r["speed_up"], i) for i, e in enumerate(found) for r in e["forms"] if r["name"] == name]
        axes.scatter(*zip(*points, strict=True), s=30, label=name)
    picks = [
        (next(r["speed_up"] for r in e["forms"] if r["name"] == e["choice"]), i) for i, e in enumerate(found)
    ]
    axes.scatter(*zip(*picks, strict=True), s=110, facecolors="none", edgecolors="black", label="chosen")
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{t:g}" for t in TICKS])
    axes.set_yticks(range(len(found)), [_label(e) for e in found], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"times as fast as float32 on {where['device_kind']} ({where['cpu']})")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def _label(entry: dict[str, Any]) -> str:
    x, w = ("×".join(map(str, shape)) for shape in entry["shapes"])
    return f"{entry['site']}  {x} * {w}"
