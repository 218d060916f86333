"""A model and its task as jaxaccel trains and runs them: the trainer's step and inference, compiled for each shape."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.programs import draw_weights
from jaxaccel.core.paths import path_text
from jaxaccel.data import augment
from jaxaccel.models import adapter
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import Task
from jaxaccel.tasks.metrics import value_of
from jaxaccel.training.step import Training

Batch = Mapping[str, jax.Array]


class TaskModel:
    """A model with random weights, and its task.

    Args:
      task: what the model does.
      factory: makes the model, of `facts`.
      facts: what the data say of themselves.
      optimizer: with a constant learning rate.
      batch: with which `check` computes, as `make_batch` makes it.
      shared: arrays that `save` saves too, by name.
    """

    def __init__(
        self, task: Task, factory: Callable[..., Any], facts: Mapping[str, Any], optimizer: Optimizer, batch: Batch,
        shared: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.batch, self.shared = batch, shared or {}
        model = adapter.as_model(factory, facts, jax.eval_shape(task.inputs, batch))
        schedule = Schedule("constant").build(optimizer.learning_rate, 1)
        self.training = Training(model, task, optimizer.build(schedule), schedule, augment.chain())
        self.params, self.model_state = draw_weights(adapter.abstract_variables(model))

    def save(self, file: Path) -> None:
        """Saves the weights for the other process, by path, and what is shared with it."""
        save_arrays(file, self.params, self.shared)

    def check(self) -> dict[str, float]:
        """Computes the loss and the norm of its gradient, without dropout."""

        def loss(params: Any) -> jax.Array:
            outputs = self.training.bind(params, self.model_state)(*self.training.task.inputs(self.batch))
            return value_of(self.training.task.loss(outputs, self.batch)[0])

        with jax.default_matmul_precision("highest"):
            value, gradients = jax.jit(self.training.lowered(jax.value_and_grad(loss)))(self.params)
        return {"loss": float(value), "gradient": float(optax.global_norm(gradients))}

    def make_training(self, batches: Sequence[Batch], retargeted: bool) -> Callable[[], Any]:
        """Makes what takes a training step on each batch."""
        training = choose_forms(self.training, retargeted)
        shapes = jax.eval_shape(training.init)
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        state = jax.device_put(dataclasses.replace(blank, params=self.params, model_state=self.model_state))
        box = [state]
        step = jax.jit(training.lowered(training.step), donate_argnums=0)
        steps = compile_for_each(lambda batch: step.lower(state, batch).compile(), batches)

        def run() -> Any:
            for call, batch in steps:
                box[0], _ = call(box[0], batch)
            return box[0].step

        return run

    def make_inference(self, batches: Sequence[Batch], retargeted: bool) -> Callable[[], Any]:
        """Makes what computes the outputs for each batch."""
        training = choose_forms(self.training, retargeted)
        params = jax.device_put(self.params)

        def infer(params: Any, batch: Batch) -> Any:
            return training.bind(params, self.model_state)(*training.task.inputs(batch))

        call = jax.jit(training.lowered(infer))
        calls = compile_for_each(lambda batch: call.lower(params, batch).compile(), batches)
        return lambda: [call(params, batch) for call, batch in calls]


def make_batch(arrays: Mapping[str, Any]) -> Batch:
    """Makes a batch as the trainer has it, on the device."""
    size = len(next(iter(arrays.values())))
    given = {
        "index": np.arange(size, dtype=np.int32), "epoch": np.zeros(size, np.int32), "mask": np.ones(size, np.float32),
    }  # fmt: skip
    return jax.device_put({**arrays, **given})


def choose_forms(training: Training, retargeted: bool) -> Training:
    """Chooses between the forms that `ja.retarget` takes and those of XLA."""
    return training if retargeted else dataclasses.replace(training, lowering="xla")


def compile_for_each(
    make: Callable[[Batch], Callable[..., Any]], batches: Sequence[Batch]
) -> list[tuple[Callable[..., Any], Batch]]:
    """Compiles once for each shape; returns (program, batch) for each batch."""
    made: dict[Any, Callable[..., Any]] = {}
    found = []
    for batch in batches:
        shapes = tuple((name, x.shape) for name, x in sorted(batch.items()))
        if shapes not in made:
            made[shapes] = make(batch)
        found.append((made[shapes], batch))
    return found


def save_arrays(file: Path, params: Any, shared: Mapping[str, Any]) -> None:
    """Saves weights by path, and other arrays by name."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays: dict[str, Any] = {path_text(path): np.asarray(x) for path, x in leaves}
    arrays.update({name: np.asarray(x) for name, x in shared.items()})
    np.savez(file, **arrays)
