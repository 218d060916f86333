"""Many trainings as one program: stacked states, each replica with its own seed and its own numbers.

Replicas differ in values that a compiled step can take as arguments (the seed, a learning rate), never in shapes.
They talk to each other about nothing, so they are spread over devices without communication.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxaccel.core.platform import platform_of
from jaxaccel.data.order import Order, Together
from jaxaccel.distributed import batch_sharding, replicated
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.metrics import Headline, Mean, Scores
from jaxaccel.tasks.task import Batch, Task
from jaxaccel.training.state import StepMetrics, TrainState
from jaxaccel.training.step import Training

PyTree = Any
BUSY_FLOPS = 1e9
"""Of a replica's step: with more its operations keep all cores of a CPU busy."""
Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Replicas:
    """`Training` for several replicas at once: every array of its states has a leading axis of `count`.

    Replica i computes what ``make({path: value[i]})`` computes alone, to float rounding: a program of several is
    fused differently.
    """

    make: Callable[[Values], Training]
    """The training with the numbers that stand at these paths of the recipe."""
    values: Mapping[str, np.ndarray]
    """{path: (count,)}; ``seed`` is always among them."""
    mesh: Mesh
    unrolled: bool | None = None
    """One replica's operations after another's, instead of `jax.vmap`: a convolution of several kernels at once is
    one with groups, which XLA:CPU runs slowly (`python -m benchmarks replicas` shows it). By default on the
    CPU."""

    def __post_init__(self) -> None:
        """Checks that the replicas can be spread over the devices, and looks at these."""
        split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if self.count % split:
            raise UserError(
                f"{self.count} replicas do not divide over {split} devices: train a multiple of {split}, or use "
                f"fewer devices with {option('mesh.data')}"
            )
        if self.unrolled is None:
            object.__setattr__(self, "unrolled", platform_of(self.mesh) == "cpu")

    @property
    def count(self) -> int:
        """How many replicas there are."""
        return len(self.values["seed"])

    @property
    def task(self) -> Task:
        """What the models do."""
        return self.make({}).task

    def init(self, weights: Mapping[str, jax.Array] | None = None) -> TrainState:
        """The states before the first step, each a function of its seed and of its `weights` (count, ...), by path."""
        return self._each(lambda values, weights: self.make(values).init(weights), dict(weights or {}))

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """One update of each replica on its own batch: arrays (count, B, ...)."""

        def one(values: Values, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            training = self.make(values)
            return training.lowered(training.step, whole=True)(state, batch)

        return self._each(one, state, dict(batch))

    def evaluate(self, weights: PyTree, model_state: PyTree, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """Each replica's metrics of one batch that all share: sums of shape (count,), and rows (count, B, ...)."""

        def one(values: Values, weights: PyTree, model_state: PyTree, batch: Batch) -> Mapping[str, Any]:
            training = self.make(values)
            return training.lowered(training.evaluate, whole=True)(weights, model_state, batch)

        return self._each(one, weights, model_state, shared=dict(batch))

    def observe(self, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
        """The model states after a look at each replica's own batch, (count, B, ...), in training mode."""

        def one(values: Values, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
            return self.make(values).observe(weights, model_state, batch)

        return self._each(one, weights, model_state, dict(batch))

    def predict(self, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
        """Each replica's predictions of one batch that all share."""

        def one(values: Values, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
            return self.make(values).predict(weights, model_state, batch)

        return self._each(one, weights, model_state, shared=dict(batch))

    def alone(self, i: int) -> Training:
        """The training of replica i."""
        return self.make(pick_numbers(self.values, i))

    def best(self, scores: Sequence[Scores], state: TrainState, headline: Headline) -> int:
        """The replica that is best by `headline`, of those that did not come out non-finite, unless all did."""
        halted = np.asarray(state.halted)
        sound = [i for i in _sound(scores) if not halted[i]] or list(range(self.count))
        return sound[headline.best([scores[i] for i in sound])]

    def lowered(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f`: each replica's own step is lowered instead."""
        return f

    def order(self, make: Callable[[int], Order]) -> Order:
        """Batch k of every replica, shuffled by its own seed: arrays (count, B)."""
        return Together(tuple(make(int(seed)) for seed in self.values["seed"]))

    def batch_shape(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of the replicas' batches together."""
        return {name: jax.ShapeDtypeStruct((self.count, *x.shape), x.dtype) for name, x in batch.items()}

    def sharding(self, state: TrainState, mesh: Mesh) -> TrainState:
        """Whole replicas on each device."""
        return jax.tree.map(lambda _: batch_sharding(mesh), state)

    def reported(self, mesh: Mesh) -> NamedSharding | None:
        """Where metrics lie: with their replica, unless other processes have to read them."""
        return replicated(mesh) if jax.process_count() > 1 else None

    def compiler_options(self, flops: float, platform: str) -> dict[str, str | bool]:
        """For the program of a step that costs `flops`.

        XLA:CPU runs operations of several unrolled replicas at the same time. Where one replica's keep all cores busy
        that only costs memory traffic; small ones leave cores idle, and there it helps
        (`python -m benchmarks replicas`).
        """
        busy = self.unrolled and platform == "cpu" and flops > BUSY_FLOPS * self.count
        return {"xla_cpu_enable_concurrency_optimized_scheduler": False} if busy else {}

    def copies(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """`weights` ({path: array}) for every replica."""
        return {path: np.broadcast_to(x, (self.count, *x.shape)) for path, x in weights.items()}

    def scores(
        self, means: Mapping[str, Mean], rows: Sequence[Mapping[str, np.ndarray]] = (), source: Any = None
    ) -> list[Scores]:
        """One row of numbers a replica, from the sums over all batches and the rows of each call."""
        shared = ("index", "mask")

        def of_one(i: int) -> Scores:
            own = [{name: x if name in shared else x[:, i] for name, x in call.items()} for call in rows]
            return self.alone(i).scores(pick_replica(dict(means), i), own, source)[0]

        return list(map(of_one, range(self.count)))

    def table(self, scores: Sequence[Scores]) -> list[dict[str, float]]:
        """What each replica was trained with and what came of it."""
        return [pick_numbers(self.values, i) | dict(row) for i, row in enumerate(scores)]

    def _each(self, f: Callable[..., Any], *stacked: PyTree, shared: PyTree = None) -> Any:
        """`f(values, *stacked, shared)` of every replica, on the device where the replica lives."""
        over = batch_sharding(self.mesh).spec

        def local(values: Values, stacked: tuple[PyTree, ...], shared: PyTree) -> Any:
            rest = () if shared is None else (shared,)
            if not self.unrolled:
                return jax.vmap(lambda values, *own: f(values, *own, *rest))(values, *stacked)
            here = next(iter(values.values())).shape[0]
            rows = [f(*pick_replica((values, *stacked), i), *rest) for i in range(here)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

        values = {path: jnp.asarray(column) for path, column in self.values.items()}
        if self.mesh.size == 1:
            return local(values, stacked, shared)
        spread = jax.shard_map(
            local, mesh=self.mesh, in_specs=(over, over, PartitionSpec()), out_specs=over, check_vma=False
        )
        return spread(values, stacked, shared)


def pick_replica(stacked: PyTree, i: int) -> PyTree:
    """Replica i of stacked arrays."""
    return jax.tree.map(lambda x: x[i], stacked)


def pick_numbers(values: Mapping[str, np.ndarray], i: int) -> dict[str, float]:
    """What replica i is trained with, {path: number}."""
    return {path: column[i].item() for path, column in values.items()}


def summarize_replicas(scores: Sequence[Scores], headline: Headline) -> dict[str, float]:
    """The mean of each metric over the replicas, and of the headline the standard deviation and the best as well.

    The deviation is that of a sample (n - 1). Replicas with a score that is not finite are left out, unless there is
    no other. One replica's scores are returned as they are.
    """
    scores = [scores[i] for i in _sound(scores)] or scores
    if len(scores) == 1:
        return dict(scores[0])
    columns = {name: np.array([row[name] for row in scores]) for name in _shared(scores)}
    overall = {name: float(column.mean()) for name, column in columns.items()}
    if headline.name not in columns:
        return overall
    best = scores[headline.best(scores)][headline.name]
    deviation = float(columns[headline.name].std(ddof=1))
    return overall | {f"{headline.name}_std": deviation, f"{headline.name}_best": best}


def _sound(scores: Sequence[Scores]) -> list[int]:
    """Those rows of which all numbers are finite. A metric that is not so in any row tells nothing of them."""
    finite = np.isfinite([[row[name] for name in _shared(scores)] for row in scores])
    return np.flatnonzero(finite[:, finite.any(0)].all(1)).tolist() if finite.any() else []


def _shared(scores: Sequence[Scores]) -> list[str]:
    """The names of metrics that every row has."""
    return [name for name in scores[0] if all(name in row for row in scores)]
