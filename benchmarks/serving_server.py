"""The server that `serving` measures: ``python -m jaxaccel.serve`` with a network that is made here for a bundle.

    python -m benchmarks.serving_server mlp --port 0 --grpc-port 0

``mlp`` has weights so large that reading them from memory takes most of the time of a single example; a batch reads
them once. ``nothing`` gives back what it takes, so that all that is measured is the protocol.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxaccel import cli
from jaxaccel.deployment.serving.sources import Opened
from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.serve import main

FEATURES, HIDDEN, CLASSES = 64, 4096, 10
SIZES = (1, 2, 4, 8, 16, 32)


class MlpEngine:
    """A network of three layers, compiled for each of `SIZES`."""

    name = "xla"
    batches: Sequence[int] = SIZES
    signature = Signature(
        (TensorSpec("x", "float32", (None, FEATURES)),), (TensorSpec("logits", "float32", (None, CLASSES)),)
    )

    def __init__(self) -> None:
        shapes = ((FEATURES, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES))
        keys = jax.random.split(jax.random.key(0), len(shapes))
        self._weights = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=True)]
        self._f = jax.jit(apply_mlp)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fills the examples up to the next size and computes them."""
        count = self.signature.check_inputs(arrays)
        size = next(size for size in SIZES if size >= count)
        x = np.zeros((size, FEATURES), np.float32)
        x[:count] = arrays["x"]
        return {"logits": np.asarray(self._f(self._weights, x))[:count]}


class NothingEngine:
    """Gives back what it takes."""

    name = "xla"
    batches: Sequence[int] = (1, 32)
    signature = Signature(
        (TensorSpec("x", "float32", (None, FEATURES)),), (TensorSpec("y", "float32", (None, FEATURES)),)
    )

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Computes nothing."""
        return {"y": arrays["x"]}


def apply_mlp(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Computes the logits."""
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def load(path: Path, engine: str) -> Opened:
    """Opens one of the two by its name."""
    return Opened(path.name, MlpEngine() if path.name == "mlp" else NothingEngine())


if __name__ == "__main__":
    cli.run(lambda words: main(words, load), sys.argv[1:])
