"""Times convolutions by oneDNN's kernels, and their gradients, beside XLA's own and `ja.retarget`'s choice.

    python -m pip install ./native && python -m benchmarks kernels

bfloat16 has operands and results in bfloat16. int8 has scales, a bias, ReLU and rounding to int8 behind it, by XLA too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Mistake, Options, choose_batches, choose_words, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.suite.lowerings import Case, format_shapes, list_cases
from benchmarks.tables import Table, format_ratio, format_short
from jaxaccel.core import kernels, numerics
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.choose import choose

Programs = dict[str, tuple[Callable[..., Any], Sequence[jax.Array]]]
PAIRS = (("oneDNN", XLA), ("oneDNN bfloat16", XLA), ("oneDNN int8", "XLA int8"))
"""Whose times are divided by whose."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each convolution, each gradient and each batch size."""
    if not kernels.is_available():
        raise Mistake(kernels.why_unavailable())
    cases = [(case, size) for size in options.batch for case in list_cases(size, options.sites)]
    for case, batch_size in cases:
        if case.primitive is jax.lax.conv_general_dilated_p:
            yield measure_cell(case, batch_size, options)


def measure_cell(case: Case, batch_size: int, options: Options) -> Cell:
    """Times all that compute one convolution in turns."""
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.standard_normal(s.shape, np.float32)) for s in case.shapes]
    programs = list_programs(case, operands)
    calls = {name: partial(jax.jit(f).lower(*args).compile(), *args) for name, (f, args) in programs.items()}
    turns = {name: run_repeatedly(call) for name, call in calls.items()}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = [
        {"name": name, "rounds": len(found), **summarize_times(found)} for name, found in times.rounds.items()
    ]
    gains = {ours: times.gain(ours, other).ratio for ours, other in PAIRS if ours in calls}
    error = np.abs(np.asarray(calls["oneDNN"]()) - np.asarray(calls[XLA]())).max()
    return {
        "case": case.name, "batch_size": batch_size, "shapes": [list(s.shape) for s in case.shapes],
        "isa": kernels.find_isa(), "error": float(error), "speed_up": gains, "programs": rows,
    }  # fmt: skip


def list_programs(case: Case, operands: Sequence[jax.Array]) -> Programs:
    """Lists what is timed: a function and its operands by name."""
    programs: Programs = {
        XLA: (partial(case.compute, XLA), operands),
        "oneDNN": (partial(convolve, case.params, "float32"), operands),
    }
    choice, _ = choose("conv_general_dilated", case.params, case.shapes)
    if choice != XLA:
        programs["chosen form"] = partial(case.compute, choice), operands
    narrow = [x.astype(jnp.bfloat16) for x in operands]
    if kernels.supports(case.params, narrow[0], narrow[1], "bfloat16"):
        narrow_params = {**case.params, "preferred_element_type": None}
        programs["oneDNN bfloat16"] = partial(convolve, narrow_params, "bfloat16"), narrow
    integers = [jnp.clip(jnp.round(30 * x), -127, 127).astype(jnp.int8) for x in operands]
    if "gradient" not in case.name and kernels.supports_integers(
        case.params, integers[0], integers[1], jnp.int8
    ):
        programs["XLA int8"] = partial(convolve_and_round, case.params), integers
        programs["oneDNN int8"] = partial(convolve_at_once, case.params), integers
    return programs


def convolve(params: Mapping[str, Any], dtype: str, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Convolves by a kernel."""
    return kernels.convolve(params, lhs, rhs, dtype)


def convolve_and_round(params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Convolves integers by XLA, scales, adds a bias, and rounds to int8."""
    exact = {**params, "preferred_element_type": jnp.dtype(jnp.int32)}
    sums = jax.lax.conv_general_dilated_p.bind(lhs, rhs, **exact).astype(jnp.float32)
    return numerics.to_integers(jax.nn.relu(sums * 1e-3 + 0.5), jnp.float32(0.037))


def convolve_at_once(params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Computes the same in one call of a kernel."""
    features = rhs.shape[params["dimension_numbers"].rhs_spec[0]]
    bias = jnp.full(features, 0.5)
    epilogue = kernels.Epilogue(scale=1e-3, bias=bias, divisor=0.037, relu=True)
    return kernels.convolve_integers(params, lhs, rhs, epilogue, jnp.int8)


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a convolution: milliseconds, and how many times as fast as XLA's."""
    names = list(dict.fromkeys(row["name"] for cell in cells for row in cell["programs"]))
    rows = []
    for cell in cells:
        times = {row["name"]: format_short(row["median_ms"]) for row in cell["programs"]}
        gains = [format_ratio(cell["speed_up"][ours]) if ours in times else "" for ours, _ in PAIRS]
        rows.append([cell["case"], format_shapes(cell), *(times.get(name, "") for name in names), *gains])
    headings = ["operation", "shapes", *names, *(f"{ours} × {other}" for ours, other in PAIRS)]
    slower = sum(cell["speed_up"]["oneDNN"] < 1 for cell in cells)
    note = f"**XLA's own is faster than oneDNN's in float32 in {slower} of {len(cells)} cases.**"
    return [Table("Milliseconds of convolutions", headings, rows, words=2, notes=[note])]


BENCHMARK = Benchmark(
    measure, tabulate, ("case", "batch_size"), prepare=set_up_trainer,
    options=(
        choose_words("Operations whose names hold one of these words (default: all)."),
        choose_batches(1, 16, 128, quick=(1,)),
        *time_by(5, 0.05, 3),
    ),
)  # fmt: skip
