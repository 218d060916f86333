"""The training step and the evaluation step as pure functions, ready for `jax.jit`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from jaxaccel.core.options import Options
from jaxaccel.core.paths import with_leaves
from jaxaccel.core.platform import count_devices
from jaxaccel.data.order import Order
from jaxaccel.distributed import replicated, state_sharding
from jaxaccel.models.adapter import Model
from jaxaccel.models.bound import Bound
from jaxaccel.optim.averaging import Averaging, weights_to_evaluate
from jaxaccel.optim.float32_updates import apply_updates
from jaxaccel.tasks.metrics import Mean, Scores
from jaxaccel.tasks.task import Batch, Task, summarize_split
from jaxaccel.training.loss import LOSS_SCALE, TRANSFORMATIONS, BatchLoss, Precision, Remat
from jaxaccel.training.state import StepMetrics, TrainState
from jaxaccel.training.teacher import Teacher
from jaxaccel.transforms import retarget

PyTree = Any
Augment = Callable[[jax.Array, Batch], Batch]


@dataclasses.dataclass(frozen=True)
class Training(Options):
    """The ingredients of a step."""

    model: Model
    task: Task
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    augment: Augment
    seed: int = 0
    augment_features: Augment = lambda key, batch: batch
    """As `augment`, of what the task computes of the augmented batch."""
    accumulate: int = 1
    averaging: Averaging | None = None
    remat: Remat = "none"
    """Name of a policy in `jax.checkpoint_policies`: what to keep of the forward pass for the backward one."""
    non_finite: Literal["stop", "skip"] = "stop"
    precision: Precision = "float32"
    lowering: Literal["auto", "xla"] = "auto"
    teacher: Teacher | None = None
    """What is learned from another model, besides the task."""

    @property
    def count(self) -> int:
        """How many models train."""
        return 1

    @property
    def loss(self) -> BatchLoss:
        """What a step minimizes."""
        policy = None if self.remat == "none" else getattr(jax.checkpoint_policies, self.remat)
        transform = TRANSFORMATIONS[self.precision]
        return BatchLoss(self.model, self.task, transform, policy, self.accumulate, self.teacher)

    def init(self, weights: Mapping[str, jax.Array] | None = None) -> TrainState:
        """The state before the first step, a function of the seed and of `weights`, by path, where there are any."""
        params, model_state = self.model.init(jax.random.key(self.seed))
        teacher = self.teacher.blank() if self.teacher else None
        start = with_leaves({"params": params, "model_state": model_state, "teacher": teacher}, weights or {})
        params, model_state = start["params"], start["model_state"]
        opt_state = self.tx.init(params)
        return TrainState(
            step=jnp.int32(0), params=params, model_state=model_state, opt_state=opt_state,
            average=self._first_average(params, opt_state), halted=jnp.bool_(False),
            loss_scale=LOSS_SCALE.init() if self.precision == "float16" else None, teacher=start["teacher"],
        )  # fmt: skip

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """One update. All randomness comes from (seed, step, index of the example)."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        batch = self._prepare(batch, key)
        key = jax.random.fold_in(key, 1)
        loss, grads, means, model_state = self.loss.compute_gradients(state, batch, key)
        updates, opt_state = optax.with_extra_args_support(self.tx).update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            grad=grads,
            **self.loss.evaluate_elsewhere(state, batch, key),
        )
        params = apply_updates(state.params, updates)
        norm = optax.global_norm(grads)
        # An optimizer may compute more gradients, and those may overflow where this one did not.
        moves = jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(updates))
        finite = jnp.isfinite(loss) & moves
        moved = dataclasses.replace(
            state,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            average=self._averaged(state, params, opt_state),
        )
        # A select and no branch: XLA fuses it into the update, and nothing waits for the host to decide.
        use = finite & ~state.halted
        new = jax.tree.map(lambda now, before: jnp.where(use, now, before), moved, state)
        if state.loss_scale is not None:
            # An overflow of the gradient alone is how the scale is found: that step is left out, and all is well.
            too_large = state.loss_scale.scale > LOSS_SCALE.minimum
            overflow = jnp.isfinite(loss) & ~moves & too_large
            new = dataclasses.replace(new, loss_scale=LOSS_SCALE.update(state.loss_scale, finite))
            finite |= overflow
        goes_on = (finite & ~state.halted) | (self.non_finite == "skip")
        new = dataclasses.replace(new, step=state.step + goes_on.astype(jnp.int32), halted=~goes_on)
        return new, StepMetrics(means, jnp.asarray(self.schedule(state.step)), norm, finite & ~state.halted)

    def evaluate(self, weights: PyTree, model_state: PyTree, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """The task's metrics of one batch, as sums, and its rows."""
        return self.task.evaluate(self.bind(weights, model_state), self.task.features(batch))

    def observe(self, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
        """The model state after a look at a batch in training mode: BatchNorm statistics that come nearer to it."""
        key = jax.random.key(self.seed)
        inputs = self.task.inputs(self._prepare(batch, key))

        def apply(weights: PyTree) -> PyTree:
            return self.model.apply(weights, model_state, *inputs, key=key, train=True)[1]

        return TRANSFORMATIONS[self.precision](apply)(weights)

    def predict(self, weights: PyTree, model_state: PyTree, batch: Batch) -> PyTree:
        """The task's predictions of one batch."""
        return self.task.predict(self.bind(weights, model_state), self.task.features(batch))

    def bind(self, weights: PyTree, model_state: PyTree) -> Bound:
        """The model in evaluation mode as a function of its inputs alone."""
        key = jax.random.key(self.seed)  # unused in evaluation mode, but the signature asks for one

        def apply(weights: PyTree, *inputs: PyTree, **method: str) -> PyTree:
            return self.model.apply(weights, model_state, *inputs, key=key, train=False, **method)[0]

        return Bound(TRANSFORMATIONS[self.precision](apply), weights)

    def lowered(self, f: Callable[..., Any], *, whole: bool = False) -> Callable[..., Any]:
        """`f` with its convolutions and poolings in the forms that the devices run fast, or as XLA has them.

        A batch that is split over devices must not be cut into pieces as well: with several in the mesh in context `f`
        stays as it is, unless `whole` says that each of them has a batch of its own.
        """

        def call(*args: Any) -> Any:
            on_one = whole or count_devices() == 1
            return (retarget(f, argnums=()) if self.lowering == "auto" and on_one else f)(*args)

        return call

    def order(self, make: Callable[[int], Order]) -> Order:
        """step -> its batch's ``index`` and ``mask``, which `make(seed)` gives."""
        return make(self.seed)

    def batch_shape(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of what `step` takes."""
        return dict(batch)

    def sharding(self, state: TrainState, mesh: Mesh) -> TrainState:
        """How a state of these shapes is split over `mesh`."""
        return state_sharding(state, mesh)

    def reported(self, mesh: Mesh) -> NamedSharding | None:
        """Where metrics lie: on every device, so that each process has them."""
        return replicated(mesh)

    def compiler_options(self, flops: float, platform: str) -> dict[str, str | bool]:
        """For the program of a step that costs `flops`."""
        return {}

    def copies(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """`weights` ({path: array}) for every model that trains."""
        return weights

    def scores(
        self, means: Mapping[str, Mean], rows: Sequence[Mapping[str, np.ndarray]] = (), source: Any = None
    ) -> list[Scores]:
        """One row of numbers, from the sums over all batches and the rows of each call, (batches, B, ...) each."""
        batches = [{name: x[i] for name, x in call.items()} for call in rows for i in range(len_of(call))]
        return [summarize_split(self.task, means, batches, source)]

    def _prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch as the model is to learn from it: augmented, with its features, and these augmented."""
        batch = self.task.features(self.augment(jax.random.fold_in(key, 0), batch))
        return self.augment_features(jax.random.fold_in(key, 2), batch)

    def _first_average(self, params: PyTree, opt_state: PyTree) -> PyTree | None:
        return (
            weights_to_evaluate(opt_state, params) if self.averaging is None else self.averaging.init(params)
        )

    def _averaged(self, state: TrainState, params: PyTree, opt_state: PyTree) -> PyTree | None:
        if self.averaging is None:
            return weights_to_evaluate(opt_state, params)
        return self.averaging.update(state.average, params, state.step + 1)


def len_of(call: Mapping[str, np.ndarray]) -> int:
    """How many batches the rows of a call are of."""
    return len(next(iter(call.values()))) if call else 0
