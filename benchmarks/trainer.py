"""Runs training steps as `ja.train` does, and has the models of the workloads."""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.peers.serve import time_steps
from benchmarks.workloads import CLASSES, Workload
from jaxaccel import augment, models
from jaxaccel.core.platform import platform_of
from jaxaccel.data.order import Shuffled
from jaxaccel.distributed import MeshShape, batch_sharding, make_mesh, replicated, state_sharding
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import ImageClassification
from jaxaccel.training import run_plan
from jaxaccel.training.feed import resident_feed
from jaxaccel.training.fused_steps import fuse_steps, gather_batch
from jaxaccel.training.run_log import Meter, RunLog, max_calls_ahead
from jaxaccel.training.state import TrainState
from jaxaccel.training.step import Training


class MLP(nnx.Module):
    """Two hidden layers over the flattened image: so little arithmetic that the host's work shows."""

    def __init__(self, *, hidden: int, image_size: int, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(image_size**2 * channels, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.first(x.reshape(x.shape[0], -1)))
        return self.head(nnx.relu(self.second(x)))


class RowLSTM(nnx.Module):
    """A long short-term memory that reads an image row by row; its last output is classified."""

    def __init__(self, *, hidden: int, image_size: int, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        self.rnn = nnx.RNN(nnx.LSTMCell(image_size * channels, hidden, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        outputs: Any = self.rnn(x.reshape(*x.shape[:2], -1))
        return self.head(outputs[:, -1])


MODELS: Mapping[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "convnet": models.ConvNet,
    "resnet20": models.resnet20,
    "lstm": RowLSTM,
}


@dataclasses.dataclass
class InMemory:
    """Arrays as a `jaxaccel.data.Source`."""

    images: np.ndarray
    labels: np.ndarray
    name: str = "random"
    split: str = "train"

    @property
    def features(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}

    def __getitems__(self, indices: Sequence[int], /) -> list[dict[str, np.ndarray]]:
        return [self[i] for i in indices]


class TrainerStep:
    """The pieces of `jaxaccel.train`, put together in the same way: resident data, fused steps, metered."""

    def __init__(
        self, workload: Workload, images: np.ndarray, labels: np.ndarray, batch_size: int, *,
        steps_per_call: int = 0, fuse: Callable[..., Callable] = fuse_steps,
    ) -> None:  # fmt: skip
        mesh = make_mesh(MeshShape(data=1))
        source, task = InMemory(images, labels), ImageClassification()
        epoch_steps = len(source) / batch_size
        shapes = {
            "image": jax.ShapeDtypeStruct((batch_size, *workload.image), np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
            "index": jax.ShapeDtypeStruct((batch_size,), np.int32),
            "epoch": jax.ShapeDtypeStruct((batch_size,), np.int32),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
        }
        factory = partial(MODELS[workload.model], **workload.options)
        model = as_model(factory, describe_data(workload), jax.eval_shape(task.inputs, shapes))
        optimizer = Optimizer(
            workload.optimizer, workload.learning_rate, _arguments(workload), workload.weight_decay
        )
        schedule = Schedule("constant").build(workload.learning_rate, 1)
        self.training = Training(model, task, optimizer.build(schedule), schedule, augment.chain())
        state_shape = jax.eval_shape(self.training.init)
        shardings = state_sharding(state_shape, mesh)
        self.state: TrainState = jax.jit(self.training.init, out_shardings=shardings)()
        flops = run_plan.count_step_flops(self.training.step, state_shape, shapes)
        boundary = max(1, round(workload.eval_every * epoch_steps))
        self.steps_per_call = run_plan.choose_steps_per_call(
            steps_per_call, flops, boundary, 10_000, platform_of(mesh)
        )
        if steps_per_call:
            self.steps_per_call = steps_per_call
        feed = resident_feed(source, task.element, Shuffled(0, len(source), batch_size), mesh)
        self._arrays = feed.arrays
        # Enough for any round; each item is made only when it is wanted.
        self._calls = [
            range(start, start + self.steps_per_call)
            for start in range(0, 200_000 * self.steps_per_call, self.steps_per_call)
        ]
        self._items = zip(self._calls, feed.items(self._calls), strict=True)
        call = jax.jit(
            fuse(self.training, partial(jax.lax.with_sharding_constraint, shardings=batch_sharding(mesh))),
            donate_argnums=0, out_shardings=(shardings, replicated(mesh)),
        )  # fmt: skip
        self._call = call.lower(self.state, self._arrays, next(feed.items(self._calls[:1]))).compile()
        log = RunLog(
            Path(tempfile.gettempdir()), steps=1, epoch=lambda step: step / epoch_steps, done=0, show=False
        )
        self._meter = Meter(
            log,
            examples=lambda step: step * batch_size,
            done=0,
            every=100,
            stops=True,
            lag=max_calls_ahead(mesh),
        )

    def run(self, steps: int) -> float:
        """Times at least `steps` steps, in seconds each, after one call that does not count."""
        return time_steps(self._advance, -(-steps // self.steps_per_call)) / self.steps_per_call

    def _advance(self, calls: int) -> None:
        for call, item in itertools.islice(self._items, calls):
            self.state, metrics = self._call(self.state, self._arrays, item)
            self._meter.push(call, metrics)
        self._meter.flush()
        jax.block_until_ready(self.state)


def fuse_by_scan(unroll: bool) -> Callable[..., Callable]:
    """Fuses steps as `fuse_steps` does, by one `jax.lax.scan`, rolled or unrolled on any device."""

    def fuse(training: Training, constrain: Callable) -> Callable:
        def steps(state: TrainState, arrays: Any, fed: Any) -> tuple[TrainState, Any]:
            def body(state: TrainState, item: Any) -> tuple[TrainState, Any]:
                return training.step(state, constrain(gather_batch(arrays, item)))

            return jax.lax.scan(body, state, dict(fed), unroll=unroll)

        return steps

    return fuse


def describe_data(workload: Workload) -> dict[str, int]:
    """Describes the data as a model is told about it."""
    return {"classes": CLASSES, "channels": workload.image[2], "image_size": workload.image[0]}


def _arguments(workload: Workload) -> dict[str, float]:
    return {"momentum": 0.9} if workload.optimizer == "sgd" else {}


def draw_batch(size: int, batch: int, classes: int) -> dict[str, jax.Array]:
    """Draws a batch of noise as the trainer has it, on the device."""
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8),
        "label": rng.integers(0, classes, batch).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "mask": np.ones(batch, np.float32),
    }
    return jax.device_put(data)
