"""Times recurrent networks, written in several ways, as XLA compiles them and with `ja.retarget`.

    python -m benchmarks recurrent
    python -m benchmarks recurrent --cells inside nnx_lstm --rows 1 32

Inference is one call over a sequence, training the gradient of the sum of squares of all outputs. `inside` multiplies
each input in the loop, `outside` all inputs before it, `joined` inputs and states side by side by one matrix, as
textbooks have it; the others are layers of Flax and of jaxaccel. Both start from the same weights, and it ends where
their results differ by more than 1e-3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxaccel as ja
from benchmarks.harness import Benchmark
from benchmarks.options import Mistake, Option, Options, choose_names, read_count, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio, format_span
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.models.adapter import as_model, inference
from jaxaccel.models.layers.recurrent import Gru, Lstm, advance

SIZES = {1: (128, 64, 128), 4: (128, 64, 128), 16: (128, 64, 128), 32: (128, 64, 128), 128: (64, 256, 256)}
"""Steps, inputs and features by the rows of a batch."""
QUICK = dict.fromkeys(SIZES, (6, 8, 8))
AGREES = 1e-3
WHAT = ("infer", "train")


class Written(nnx.Module):
    """An LSTM that is written out as one scan over (B, T, inputs)."""

    def __init__(self, way: str, inputs: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.way = way
        self.input = nnx.Linear(inputs, 4 * features, use_bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(4 * features))
        self.recurrent = nnx.Linear(features, 4 * features, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (B, T, features)."""
        w, u, bias = self.input.kernel[...], self.recurrent.kernel[...], self.bias[...]
        both, rows = jnp.concatenate([w, u]), x.swapaxes(0, 1)
        if self.way == "outside":
            rows = rows @ w + bias

        def step(carry: Any, row: jax.Array) -> tuple[Any, jax.Array]:
            output, cell = carry
            if self.way == "outside":
                gates = row + output @ u
            elif self.way == "inside":
                gates = row @ w + output @ u + bias
            else:
                gates = jnp.concatenate([row, output], -1) @ both + bias
            output, cell = advance(gates, cell)
            return (output, cell), output

        zeros = jnp.zeros((x.shape[0], u.shape[0]))
        return jax.lax.scan(step, (zeros, zeros), rows)[1].swapaxes(0, 1)


class Layer(nnx.Module):
    """A layer of jaxaccel."""

    def __init__(self, kind: Any, inputs: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.layer = kind(inputs, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (B, T, features)."""
        return self.layer(x)[0]


def _flax(cell: Any) -> Callable[..., nnx.Module]:
    return lambda inputs, features, *, rngs: nnx.RNN(cell(inputs, features, rngs=rngs), rngs=rngs)


def _written(way: str) -> Callable[..., nnx.Module]:
    return lambda inputs, features, *, rngs: Written(way, inputs, features, rngs=rngs)


def _ours(kind: Any) -> Callable[..., nnx.Module]:
    return lambda inputs, features, *, rngs: Layer(kind, inputs, features, rngs=rngs)


CELLS: Mapping[str, Callable[..., nnx.Module]] = {
    **{way: _written(way) for way in ("inside", "outside", "joined")},
    "lstm": _ours(Lstm), "gru": _ours(Gru),
    "nnx_lstm": _flax(nnx.LSTMCell), "nnx_fused_lstm": _flax(nnx.OptimizedLSTMCell), "nnx_gru": _flax(nnx.GRUCell),
}  # fmt: skip


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each way to write it and number of rows."""
    for name in options.cells:
        for rows in options.rows:
            sizes = (QUICK if options.quick else SIZES).get(rows, SIZES[32])
            yield measure_cell(name, rows, sizes, options)
            jax.clear_caches()


def measure_cell(name: str, rows: int, sizes: tuple[int, int, int], options: Options) -> Cell:
    """Measures inference and training of one network."""
    steps, inputs, features = sizes
    shape = jax.ShapeDtypeStruct((rows, steps, inputs), jnp.float32)
    model = as_model(lambda *, rngs: CELLS[name](inputs, features, rngs=rngs), {}, (shape,))
    params, state = jax.jit(model.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), shape.shape)
    run = inference(model)

    def infer(params: Any, x: jax.Array) -> jax.Array:
        return run({"params": params, "model_state": state}, x)

    def train(params: Any, x: jax.Array) -> Any:
        return jax.grad(lambda params, x: jnp.square(infer(params, x)).sum(), (0, 1))(params, x)

    found = {}
    for what, f in zip(WHAT, (infer, train), strict=True):
        ways = {"XLA": f, "retargeted": ja.retarget(f)}
        compiled = {way: jax.jit(g).lower(params, x).compile() for way, g in ways.items()}
        _check(name, *(program(params, x) for program in compiled.values()))
        turns = {
            way: run_repeatedly(lambda program=program: program(params, x))
            for way, program in compiled.items()
        }
        times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
        found[what] = {
            "times": {way: summarize_times(taken) for way, taken in times.rounds.items()},
            "times_as_fast": times.gain("retargeted", "XLA").ratio, "rounds": len(times.rounds["XLA"]),
        }  # fmt: skip
    return {
        "cell": name,
        "rows": rows,
        "steps": steps,
        "inputs": inputs,
        "features": features,
        "programs": found,
    }


def _check(name: str, want: Any, got: Any) -> None:
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        error = float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(a)).max())
        if not error < AGREES:
            raise Mistake(f"{name}: retargeted results differ by {error:.2g}")


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table of inference and one of training."""
    tables = []
    for what, title in zip(WHAT, ("Inference of recurrent networks", "Their gradients"), strict=True):
        rows, ratios = [], {}
        for cell in cells:
            found = cell["programs"][what]
            size = f"{cell['steps']} x {cell['inputs']} -> {cell['features']}"
            shown = [format_span(found["times"][way]) for way in ("XLA", "retargeted")]
            rows.append([cell["cell"], str(cell["rows"]), size, *shown, format_ratio(found["times_as_fast"])])
            ratios[f"{cell['cell']}, {cell['rows']} rows"] = found["times_as_fast"]
        headings = [
            "written as",
            "rows",
            "steps x inputs -> features",
            "XLA ms",
            "retargeted ms",
            "times as fast",
        ]
        tables.append(Table(title, headings, rows, notes=[compare_with("XLA's own", ratios)]))
    return tables


BENCHMARK = Benchmark(
    measure, tabulate, ("cell", "rows"),
    options=(
        choose_names("cells", CELLS, "Ways to write a recurrent network."),
        Option("rows", "Rows of a batch.", tuple(SIZES), (4,), type=read_count, several=True, metavar="N"),
        *time_by(7, 0.2, 20),
    ),
)  # fmt: skip
