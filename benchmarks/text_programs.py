"""Classifiers of texts as jaxaccel trains and runs them: the trainer's step and inference, compiled for each length."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.programs import draw_weights
from benchmarks.texts import CLASSES, DROPOUT, LEARNING_RATE, VOCABULARY, WEIGHT_DECAY, Sizes, Texts
from jaxaccel import models
from jaxaccel.core.paths import path_text
from jaxaccel.data import augment
from jaxaccel.models import adapter
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.tasks.metrics import value_of
from jaxaccel.training.step import Training


class TextModel:
    """A model with random weights, and its task."""

    def __init__(self, sizes: Sizes, texts: Texts) -> None:
        self.batch = as_batch(texts)
        task = TextClassification(fill_to=(texts.token.shape[1],))
        facts = {"vocabulary": VOCABULARY, "classes": CLASSES, "max_length": texts.token.shape[1]}
        model = adapter.as_model(make_factory(sizes), facts, jax.eval_shape(task.inputs, self.batch))
        schedule = Schedule("constant").build(LEARNING_RATE, 1)
        self.optimizer = Optimizer("adamw", LEARNING_RATE, {}, WEIGHT_DECAY)
        tx = self.optimizer.build(schedule)
        self.training = Training(model, task, tx, schedule, augment.chain())
        self.params, self.model_state = draw_weights(adapter.abstract_variables(model))

    def save(self, file: Path) -> None:
        """Saves the weights for the other process, by path."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        arrays: dict[str, Any] = {path_text(path): np.asarray(x) for path, x in leaves}
        np.savez(file, **arrays)

    def check(self) -> dict[str, float]:
        """Computes the loss and the norm of its gradient, without dropout."""

        def loss(params: Any) -> jax.Array:
            outputs = self.training.bind(params, self.model_state)(*self.training.task.inputs(self.batch))
            return value_of(self.training.task.loss(outputs, self.batch)[0])

        value, gradients = jax.jit(jax.value_and_grad(loss))(self.params)
        return {"loss": float(value), "gradient": float(optax.global_norm(gradients))}

    def make_training(self, epoch: Sequence[Texts], lowered: bool) -> Callable[[], Any]:
        """Makes what takes a training step on each batch."""
        training = self.training if lowered else _keep_forms(self.training)
        batches = [as_batch(texts) for texts in epoch]
        shapes = jax.eval_shape(training.init)
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        state = jax.device_put(dataclasses.replace(blank, params=self.params, model_state=self.model_state))
        box = [state]
        steps = {}
        for batch in batches:
            if (length := batch["token"].shape[1]) not in steps:
                call = jax.jit(training.lowered(training.step), donate_argnums=0)
                steps[length] = call.lower(state, batch).compile()

        def run() -> Any:
            for batch in batches:
                box[0], _ = steps[batch["token"].shape[1]](box[0], batch)
            return box[0].step

        return run

    def make_inference(self, epoch: Sequence[Texts], lowered: bool) -> Callable[[], Any]:
        """Makes what computes the logits of each batch."""
        training = self.training if lowered else _keep_forms(self.training)
        batches = [as_batch(texts) for texts in epoch]
        params = jax.device_put(self.params)

        def infer(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            return training.bind(params, self.model_state)(*training.task.inputs(batch))

        calls = {}
        for batch in batches:
            if (length := batch["token"].shape[1]) not in calls:
                calls[length] = jax.jit(training.lowered(infer)).lower(params, batch).compile()
        return lambda: [calls[batch["token"].shape[1]](params, batch) for batch in batches]


def make_factory(sizes: Sizes) -> Callable[..., Any]:
    """Makes the factory of a model of these sizes."""
    dropout = DROPOUT[sizes.model]
    if sizes.model == "text_cnn":
        return partial(
            models.TextCnn,
            width=sizes.width,
            windows=sizes.windows,
            filters=sizes.filters,
            dropout=dropout,
        )
    if sizes.model == "bilstm":
        return partial(models.BiLstm, width=sizes.width, features=sizes.features, dropout=dropout)
    return partial(
        models.TextEncoder, width=sizes.width, depth=sizes.depth, heads=sizes.heads, dropout=dropout
    )


def as_batch(texts: Texts) -> dict[str, jax.Array]:
    """Makes a batch as the trainer has it, on the device."""
    size = len(texts.length)
    data = texts._asdict() | {
        "index": np.arange(size, dtype=np.int32), "epoch": np.zeros(size, np.int32), "mask": np.ones(size, np.float32),
    }  # fmt: skip
    return jax.device_put(data)


def _keep_forms(training: Training) -> Training:
    return dataclasses.replace(training, lowering="xla")
