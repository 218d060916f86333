"""The training step and the evaluation step as pure functions, ready for `jax.jit`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from jaxaccel.core import numerics
from jaxaccel.core.options import Options
from jaxaccel.core.paths import with_leaves
from jaxaccel.core.platform import count_devices, get_platform
from jaxaccel.data.order import Order
from jaxaccel.distributed import replicated, state_sharding
from jaxaccel.models.adapter import Model
from jaxaccel.models.bound import Bound
from jaxaccel.optim.averaging import Averaging, weights_to_evaluate
from jaxaccel.optim.float32_updates import apply_updates
from jaxaccel.tasks.metrics import Mean, Scores, check_names, value_of
from jaxaccel.tasks.task import Batch, Task, summarize_split
from jaxaccel.training.state import Gradients, StepMetrics, TrainState
from jaxaccel.training.teacher import Teacher
from jaxaccel.transforms import LossScale, LossScaleState, bfloat16, fake_int8, float16, retarget

PyTree = Any
Augment = Callable[[jax.Array, Batch], Batch]
Precision = Literal["float32", "bfloat16", "float16", "int8-qat"]
Remat = Literal["none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"]

TRANSFORMATIONS: dict[Precision, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "float32": lambda f: f,
    "bfloat16": partial(bfloat16, lowering="bfloat16"),
    "float16": partial(float16, lowering="float16"),
    "int8-qat": fake_int8,
}
"""What each precision makes of a function whose first argument is the parameters. Rounding is the same on every device,
also where it does not make a device faster: what is learned on one holds on the others."""
LOSS_SCALE = LossScale()
"""Of training in float16."""


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
        loss, grads, means, model_state = self._gradients(state, batch, key)
        updates, opt_state = optax.with_extra_args_support(self.tx).update(
            grads, state.opt_state, state.params, value=loss, grad=grads, **self._elsewhere(state, batch, key)
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

    def _gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> Gradients:
        grad_fn = jax.value_and_grad(self._loss_fn(state.loss_scale, state.teacher), has_aux=True)

        def part(carry: tuple[PyTree, PyTree], item: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            total, model_state = carry
            key, batch = item
            (loss, (means, model_state, weight)), grads = grad_fn(state.params, model_state, batch, key)
            return (jax.tree.map(jnp.add, total, _wide(grads)), model_state), (loss, weight, means)

        if self.accumulate == 1:
            (loss, (means, model_state, _)), grads = grad_fn(state.params, state.model_state, batch, key)
            grads = _wide(grads)
        else:
            # In float32: a sum in bfloat16 would lose its last terms, one in float16 overflow.
            zeros = jax.tree.map(jnp.zeros_like, _wide(state.params))
            (total, model_state), (losses, weights, means) = scan(
                part, (zeros, state.model_state), self._parts(batch, key)
            )
            weight = at_least_a_little(weights.sum())
            loss, grads = losses.sum() / weight, jax.tree.map(lambda g: g / weight, total)
            means = jax.tree.map(lambda x: x.sum(0), means)
        if state.loss_scale is not None:
            grads, _ = LOSS_SCALE.unscale(grads, state.loss_scale)
            loss = loss / state.loss_scale.scale
        return Gradients(loss, grads, means, model_state)

    def _elsewhere(self, state: TrainState, batch: Batch, key: jax.Array) -> dict[str, Callable[..., Any]]:
        """This step's loss and gradient at other parameters, by the names that optimizers ask for them.

        They are for line searches and L-BFGS (``value_fn``), Sophia (``obj_fn``), sharpness-aware minimization
        (``grad_fn``). What is not called costs nothing.
        """

        def value_fn(params: PyTree, **_: Any) -> jax.Array:
            loss_fn = self._loss_fn(None, state.teacher)
            if self.accumulate == 1:
                return loss_fn(params, state.model_state, batch, key)[0]
            wide = _wide(params)  # of which a gradient sums its parts in float32

            def part(model_state: PyTree, item: tuple[jax.Array, Batch]) -> tuple[PyTree, Any]:
                here = jax.tree.map(lambda w, p: w.astype(p.dtype), wide, params)
                loss, (_, model_state, weight) = loss_fn(here, model_state, item[1], item[0])
                return model_state, (loss, weight)

            _, (losses, weights) = scan(part, state.model_state, self._parts(batch, key))
            return losses.sum() / at_least_a_little(weights.sum())

        def grad_fn(params: PyTree, _: int = 0) -> PyTree:
            return self._gradients(dataclasses.replace(state, params=params), batch, key).grads

        return {"value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}

    def _loss_fn(
        self, loss_scale: LossScaleState | None, teacher: PyTree
    ) -> Callable[..., tuple[jax.Array, Any]]:
        """(params, model_state, batch, key) -> (loss, (metrics, new model state, weight)).

        The loss of a whole batch is its mean, weight 1. That of a part is a sum, divided with its weight by the number
        of the part's examples, so that it stays as small as float16 holds: parts are divided by all their weights.
        """
        apply = partial(self.model.apply, train=True)
        if self.remat != "none":
            policy = getattr(jax.checkpoint_policies, self.remat)
            apply = jax.checkpoint(apply, policy=policy)

        def loss_fn(
            params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            def model(params: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
                return apply(params, model_state, *self.task.inputs(batch), key=key)

            if self.teacher is None:
                outputs, new_state = model(params, batch)
                loss, means = self._task_loss(outputs, batch)
            else:
                (outputs, new_state), lesson = self.teacher.teach(model, teacher, self.task)(params, batch)
                loss, means = self._task_loss(outputs, batch)
                loss, means = self.teacher.weighed(loss, lesson), means | {"distill": lesson}
            if self.accumulate == 1 or not isinstance(loss, Mean):
                value, weight = value_of(loss), jnp.float32(1)
            else:
                value, weight = loss.total / len(batch["mask"]), loss.count / len(batch["mask"])
            if loss_scale is not None:
                value = LOSS_SCALE.scale(value, loss_scale)
            return value, (means, new_state, weight)

        return TRANSFORMATIONS[self.precision](loss_fn)

    def _task_loss(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array | Mean, dict[str, Mean]]:
        """The task's loss and what it reports of it: the loss itself in any case."""
        loss, means = self.task.loss(outputs, batch)
        check_names(type(self.task).__name__, means)
        reported = loss if isinstance(loss, Mean) else Mean(loss.astype(jnp.float32), jnp.float32(1))
        return loss, {"loss": reported, **means}

    def _parts(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, Batch]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(self.accumulate))
        return keys, jax.tree.map(lambda x: _dealt(x, self.accumulate), dict(batch))

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


def at_least_a_little(weight: jax.Array) -> jax.Array:
    """`weight`, and no zero to divide by where nothing counts."""
    return jnp.maximum(weight, 1e-9)


def scan(body: Callable, carry: PyTree, items: PyTree) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan`, unrolled where it is compiled for the CPU.

    XLA:CPU runs convolutions inside a while loop without its threaded kernels: a small ConvNet's step took
    15 to 20 times longer in a rolled scan than outside it (`python -m benchmarks rolled` shows it).
    """
    length = jax.tree.leaves(items)[0].shape[0]
    if get_platform() != "cpu" and length > 1:
        return jax.lax.scan(body, carry, items)
    rows = []
    for i in range(length):  # scan(unroll=True) keeps the loop where the length is 1
        carry, row = body(carry, jax.tree.map(lambda x, i=i: x[i], items))
        rows.append(row)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _wide(tree: PyTree) -> PyTree:
    """The arrays of `tree` in float32 at least."""
    return jax.tree.map(numerics.widen, tree)


def _dealt(x: jax.Array, parts: int) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...), dealt like cards so that a split batch axis stays where it is."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
