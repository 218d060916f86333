"""Runs training loops as one writes them by hand with Flax NNX, in three styles; for train_step."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks.peers.serve import time_steps
from benchmarks.trainer import MODELS, describe_data
from benchmarks.workloads import Workload, shuffle_batches


class HandWrittenStep:
    """A Flax NNX training loop as its documentation and experts write it; every batch comes from NumPy.

    The loss stays on the device: nothing in the loop waits for it.
    """

    def __init__(
        self, workload: Workload, images: np.ndarray, labels: np.ndarray, batch_size: int, variant: str
    ) -> None:
        self._batches = shuffle_batches(images, labels, batch_size)
        facts = {
            k: v
            for k, v in describe_data(workload).items()
            if k != "image_size" or workload.model != "resnet20"
        }
        self._model = MODELS[workload.model](**workload.options, **facts, rngs=nnx.Rngs(0))
        self._optimizer = nnx.Optimizer(self._model, _optax(workload), wrt=nnx.Param)
        self._model.train()
        self._step = VARIANTS[variant](self._model, self._optimizer)

    def run(self, steps: int) -> float:
        """Times `steps` steps, in seconds each, after one that does not count."""
        return time_steps(self._advance, steps)

    def _advance(self, steps: int) -> None:
        metrics: Any = None
        for images, labels in itertools.islice(self._batches, steps):
            metrics = self._step(images, labels)
        # The parameters, too, come out of the last step's one program.
        jax.block_until_ready(metrics)


def _nnx_step(model: nnx.Module, optimizer: nnx.Optimizer, images: Any, labels: Any) -> tuple[Any, Any]:
    def loss_fn(model: Any) -> tuple[jax.Array, jax.Array]:
        logits = model(images.astype(np.float32) / 127.5 - 1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads)
    return loss, (logits.argmax(-1) == labels).mean()


def _jit(model: nnx.Module, optimizer: nnx.Optimizer) -> Callable:
    return partial(nnx.jit(_nnx_step, donate_argnums=(0, 1)), model, optimizer)


def _cached_partial(model: nnx.Module, optimizer: nnx.Optimizer) -> Callable:
    """As above, but the graph of the modules is walked once and not at each call."""
    return nnx.cached_partial(nnx.jit(_nnx_step, donate_argnums=(0, 1)), model, optimizer)


def _split_merge(model: nnx.Module, optimizer: nnx.Optimizer) -> Callable:
    """Jits over the modules' state, as Flax's guide to performance has it for the last bit of speed."""
    graph, state = nnx.split((model, optimizer))

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        model, optimizer = nnx.merge(graph, state)
        metrics = _nnx_step(model, optimizer, images, labels)
        return nnx.state((model, optimizer)), metrics

    def advance(images: Any, labels: Any) -> Any:
        nonlocal state
        state, metrics = step(state, images, labels)
        return metrics

    return advance


VARIANTS: Mapping[str, Callable[[nnx.Module, nnx.Optimizer], Callable]] = {
    "nnx.jit": _jit,
    "cached_partial": _cached_partial,
    "split/merge": _split_merge,
}


def _optax(workload: Workload) -> optax.GradientTransformation:
    def decays(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    if workload.optimizer == "adamw":
        return optax.adamw(workload.learning_rate, weight_decay=workload.weight_decay, mask=decays)
    return optax.chain(
        optax.add_decayed_weights(workload.weight_decay, mask=decays),
        optax.sgd(workload.learning_rate, momentum=0.9),
    )
