"""Workloads: what the benchmarks train, five models at the sizes of well-known data sets, on random images.

It needs NumPy alone, so that the PyTorch process can import it where JAX is not installed.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, its data's shape and its optimizer; the learning rate is constant, nothing is augmented."""

    name: str
    model: Literal["mlp", "convnet", "resnet20", "lstm"]
    image: tuple[int, int, int]
    """(H, W, C) of the uint8 images."""
    examples: int
    """In the training split."""
    eval_every: float
    """Epochs between evaluations, which bound how many steps jaxaccel fuses into one call."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the model."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd: with momentum 0.9, and weight decay added to the gradient."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    """Of matrices and kernels; biases and normalization do not decay."""


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp", "mlp", (8, 8, 1), 1347, 5, {"hidden": 64}),
        Workload(
            "digits", "convnet", (8, 8, 1), 1347, 5,
            {"widths": (32, 64), "residuals": (0, 1), "hidden": 256, "dropout": 0.3},
        ),
        Workload(
            "mnist", "convnet", (28, 28, 1), 60_000, 1,
            {"widths": (16, 32, 64), "residuals": (0, 0, 1), "hidden": 256, "dropout": 0.3},
        ),
        Workload(
            "cifar", "resnet20", (32, 32, 3), 50_000, 1,
            optimizer="sgd", learning_rate=0.1, weight_decay=1e-4,
        ),
        Workload("lstm", "lstm", (28, 28, 1), 60_000, 1, {"hidden": 256}),
    )
}  # fmt: skip


def draw_data(workload: Workload, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws random images (N, H, W, C) uint8 and labels (N,) int32."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, *workload.image), dtype=np.uint8)
    return images, rng.integers(0, CLASSES, examples, dtype=np.int32)


def shuffle_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches epoch after epoch, newly shuffled, without the incomplete last one: the usual loop."""
    if batch_size > len(images):
        raise ValueError(f"batch size {batch_size} is more than the {len(images)} examples")
    rng = np.random.default_rng(1)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(images) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            yield images[rows], labels[rows]
