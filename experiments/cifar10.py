"""The published CIFAR-10 ResNets and the data that they are judged on, for the experiments beside this file.

The networks are those of github akamaster/pytorch_resnet_cifar10: files ``resnet20-*.th`` and so on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.timing import time_call
from jaxaccel.models import pretrained
from jaxaccel.models.adapter import Model, as_model

PUBLISHED = {20: 91.73, 32: 92.63, 44: 93.10, 56: 93.39}
"""Percent of the test images that are classified right, by depth."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as the networks were trained with."""


def images(split: str, downloads: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (N, 32, 32, 3), normalized, and labels (N,)."""
    source = ja.data.open("cifar10", split, downloads=downloads)
    examples = source.__getitems__(range(len(source)))
    pixels = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    return ((pixels / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32), labels


def network(depth: int, weights: Path) -> tuple[Model, dict[str, Any]]:
    """The model of that depth, and its published parameters and BatchNorm statistics."""
    files = sorted(weights.glob(f"resnet{depth}-*.th"))
    if not files:
        raise ja.UserError(
            f"no resnet{depth}-*.th in {weights}: take it from akamaster/pytorch_resnet_cifar10"
        )
    params, state = pretrained.cifar_resnet(files[0])
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    make = getattr(models, f"resnet{depth}")
    model = as_model(make, {"classes": 10, "channels": 3, "image_size": 32}, (shape,))
    return model, {"params": params, "state": state}


def inference(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """The model as a function of its variables and images (B, 32, 32, 3), to logits (B, 10)."""

    def f(variables: Any, x: jax.Array) -> jax.Array:
        key = jax.random.key(0)  # no layer draws anything in inference
        return model.apply(variables["params"], variables["state"], x, key=key, train=False)[0]

    return f


def accuracy(
    f: Callable[..., Any], params: Any, x: np.ndarray, labels: np.ndarray, batch: int = 500
) -> float:
    """Percent of `x` that `f` classifies right."""
    run = jax.jit(lambda p, x: jnp.argmax(f(p, x), -1))
    right = [
        np.asarray(run(params, x[i : i + batch])) == labels[i : i + batch] for i in range(0, len(x), batch)
    ]
    return 100 * float(np.mean(np.concatenate(right)))


def milliseconds(f: Callable[..., Any], params: Any, x: np.ndarray, repeats: int = 15) -> float:
    """Median time of a call."""
    run, x_device = jax.jit(f), jnp.asarray(x)
    params = jax.device_put(params)
    return 1000 * time_call(lambda: run(params, x_device), rounds=repeats)
