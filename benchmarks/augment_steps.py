"""Training steps with and without augmentation; for augment.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jaxaccel import augment, models
from jaxaccel.models.adapter import as_model
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.step import Training


def images(size: int, batch: int, classes: int) -> dict[str, jax.Array]:
    """A batch of noise as the trainer has it, on the device."""
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8),
        "label": rng.integers(0, classes, batch).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "mask": np.ones(batch, np.float32),
    }
    return jax.device_put(data)


def step(
    network: str, data: dict[str, jax.Array], classes: int, augmentation: augment.Augmentation
) -> Callable[[], Any]:
    """What takes a training step and waits for it."""
    task, schedule = ImageClassification(), optax.constant_schedule(1e-3)
    factory = partial(getattr(models, network), classes=classes)
    facts = {"classes": classes, "channels": 3, "image_size": data["image"].shape[1]}
    model = as_model(factory, facts, jax.eval_shape(task.inputs, data))
    training = Training(model, task, optax.sgd(schedule), schedule, augmentation)
    state = [jax.jit(training.init)()]
    advance = jax.jit(training.lowered(training.step), donate_argnums=0)

    def call() -> Any:
        state[0], metrics = advance(state[0], data)
        return jax.block_until_ready(metrics)

    return call
