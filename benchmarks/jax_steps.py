"""The JAX contenders: jaxaccel's step as `ja.train` runs it, and the loop one writes by hand with Flax NNX."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from workloads import CLASSES, Workload, batches

from jaxaccel import augment, models
from jaxaccel.data.order import Shuffled
from jaxaccel.distributed import MeshShape, batch_sharding, make_mesh, replicated, state_sharding
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import ImageClassification
from jaxaccel.training import pacing
from jaxaccel.training.feed import resident_feed
from jaxaccel.training.fuse import gather, several
from jaxaccel.training.runlog import Meter, RunLog
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


_FACTORIES: Mapping[str, Callable[..., nnx.Module]] = {
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


class Jaxaccel:
    """The pieces of `jaxaccel.train`, put together in the same way: resident data, fused steps, metered."""

    group = name = "jaxaccel"

    def __init__(
        self, workload: Workload, images: np.ndarray, labels: np.ndarray, batch_size: int, *,
        steps_per_call: int = 0, fuse: Callable[..., Callable] = several,
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
        factory = partial(_FACTORIES[workload.model], **workload.options)
        model = as_model(factory, _facts(workload), jax.eval_shape(task.inputs, shapes))
        optimizer = Optimizer(
            workload.optimizer, workload.learning_rate, _arguments(workload), workload.weight_decay
        )
        schedule = Schedule("constant").build(workload.learning_rate, 1)
        self.training = Training(model, task, optimizer.build(schedule), schedule, augment.chain())
        state_shape = jax.eval_shape(self.training.init)
        shardings = state_sharding(state_shape, mesh)
        self.state: TrainState = jax.jit(self.training.init, out_shardings=shardings)()
        flops = pacing.flops(self.training.step, state_shape, shapes)
        boundary = max(1, round(workload.eval_every * epoch_steps))
        self.steps_per_call = pacing.steps_per_call(steps_per_call, flops, boundary, 10_000)
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
        self._meter = Meter(log, examples=lambda step: step * batch_size, done=0, every=100, stops=True)

    def run(self, steps: int) -> float:
        """Seconds a step, over at least `steps` steps after one call that does not count."""
        self._advance(1)
        calls = -(-steps // self.steps_per_call)
        start = time.perf_counter()
        self._advance(calls)
        return (time.perf_counter() - start) / (calls * self.steps_per_call)

    def _advance(self, calls: int) -> None:
        for call, item in itertools.islice(self._items, calls):
            self.state, metrics = self._call(self.state, self._arrays, item)
            self._meter.push(call, metrics)
        self._meter.flush()
        jax.block_until_ready(self.state)


def scanned(unroll: bool) -> Callable[..., Callable]:
    """`jaxaccel.training.fuse.several` by one `jax.lax.scan`, rolled or unrolled whatever the device."""

    def fuse(training: Training, constrain: Callable) -> Callable:
        def steps(state: TrainState, arrays: Any, fed: Any) -> tuple[TrainState, Any]:
            def body(state: TrainState, item: Any) -> tuple[TrainState, Any]:
                return training.step(state, constrain(gather(arrays, item)))

            return jax.lax.scan(body, state, dict(fed), unroll=unroll)

        return steps

    return fuse


class HandWritten:
    """A Flax NNX training loop as its documentation and experts write it; every batch comes from NumPy.

    The loss stays on the device: nothing in the loop waits for it.
    """

    group = "nnx"

    def __init__(
        self, workload: Workload, images: np.ndarray, labels: np.ndarray, batch_size: int, variant: str
    ) -> None:
        self.name = variant
        self._batches = batches(images, labels, batch_size)
        facts = {
            k: v for k, v in _facts(workload).items() if k != "image_size" or workload.model != "resnet20"
        }
        self._model = _FACTORIES[workload.model](**workload.options, **facts, rngs=nnx.Rngs(0))
        self._optimizer = nnx.Optimizer(self._model, _optax(workload), wrt=nnx.Param)
        self._model.train()
        self._step = VARIANTS[variant](self._model, self._optimizer)

    def run(self, steps: int) -> float:
        """Seconds a step, over `steps` steps after one that does not count."""
        self._advance(1)
        start = time.perf_counter()
        self._advance(steps)
        return (time.perf_counter() - start) / steps

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
    """`jax.jit` over the modules' state, as Flax's guide to performance has it for the last bit of speed."""
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


def contenders(
    workload: Workload, images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[Jaxaccel | HandWritten]:
    """Each, ready to run; its first call compiles."""
    yield Jaxaccel(workload, images, labels, batch_size)
    for variant in VARIANTS:
        yield HandWritten(workload, images, labels, batch_size, variant)


def _facts(workload: Workload) -> dict[str, int]:
    return {"classes": CLASSES, "channels": workload.image[2], "image_size": workload.image[0]}


def _arguments(workload: Workload) -> dict[str, float]:
    return {"momentum": 0.9} if workload.optimizer == "sgd" else {}


def _optax(workload: Workload) -> optax.GradientTransformation:
    def decays(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    if workload.optimizer == "adamw":
        return optax.adamw(workload.learning_rate, weight_decay=workload.weight_decay, mask=decays)
    return optax.chain(
        optax.add_decayed_weights(workload.weight_decay, mask=decays),
        optax.sgd(workload.learning_rate, momentum=0.9),
    )
