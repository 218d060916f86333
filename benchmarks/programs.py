"""Programs of models: inference and a training step, compiled with random weights, and what compiling took."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxaccel as ja
from benchmarks.options import Options
from benchmarks.records import Cell, summarize_times
from jaxaccel.core.paths import path_text
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.models import adapter


class Program:
    """One way to run a model, compiled."""

    def __init__(self, name: str, step: Callable[..., Any], state: Any, *inputs: jax.Array) -> None:
        """`step` takes (state, *inputs); where it trains it returns the next state, else any array."""
        self.name = name
        self._state, self._inputs = jax.device_put((state, inputs))
        start = time.perf_counter()
        lowered = jax.jit(step).lower(self._state, *self._inputs)
        self.trace_seconds = time.perf_counter() - start
        self._call = lowered.compile()
        self.compile_seconds = time.perf_counter() - start - self.trace_seconds

    def call(self) -> Any:
        """Runs once; the result is not waited for."""
        return self._call(self._state, *self._inputs)


def make_programs(
    factory: Callable[..., nnx.Module], side: int, batch_size: int, dtype: str, what: Sequence[str]
) -> Iterator[Program]:
    """Yields inference and a training step (cross entropy, SGD with momentum), each retargeted to this backend."""
    shape = (batch_size, side, side, 3)
    model = adapter.as_model(factory, {"image_size": side}, (jax.ShapeDtypeStruct(shape, jnp.float32),))
    params, state = draw_weights(adapter.abstract_variables(model))
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


def draw_weights(shapes: Any) -> Any:
    """Draws arrays of these shapes: initializing would have to be compiled, and the numbers do not matter.

    Kernels are so small that activations stay finite, scales and variances 1.
    """

    def draw(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if path_text(path).rsplit("/", 1)[-1] in ("scale", "var"):
            return np.ones(shape.shape, shape.dtype)
        rng = np.random.default_rng(len(path_text(path)))
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return rng.standard_normal(shape.shape, np.float32).astype(shape.dtype) / fan_in**0.5

    return jax.tree_util.tree_map_with_path(draw, shapes)


def time_programs(programs: Sequence[Program], options: Options) -> list[Cell]:
    """Times programs in turns; a row for each, with what compiling took."""
    turns = {program.name: run_repeatedly(program.call) for program in programs}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget).rounds
    return [
        {
            "name": program.name, "rounds": len(times[program.name]), **summarize_times(times[program.name]),
            "trace_seconds": program.trace_seconds, "compile_seconds": program.compile_seconds,
        }
        for program in programs
    ]  # fmt: skip
