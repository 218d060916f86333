"""The training step and the evaluation step as pure functions, ready for `jax.jit`."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxaccel.metrics import Mean
from jaxaccel.modules import Model
from jaxaccel.tasks.task import Batch, Task
from jaxaccel.transforms import LossScale, LossScaleState, bfloat16, fake_int8, float16, retarget

PyTree = Any
Arrays = Mapping[str, jax.Array]
Augment = Callable[[jax.Array, Batch], Batch]
Precision = Literal["float32", "bfloat16", "float16", "int8-qat"]

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes: with the recipe and `step`, all that is needed to go on bit for bit."""

    step: jax.Array
    """() int32: steps done."""
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree
    """Moving average of the parameters, or None."""
    halted: jax.Array
    """() bool: a step came out non-finite; the state is as it was before it and no longer moves."""
    loss_scale: LossScaleState | None = None
    """Where training is in float16."""

    def weights(self) -> PyTree:
        """The parameters that evaluation uses: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


class StepMetrics(NamedTuple):
    """What one step reports; all are device arrays, fetched later."""

    means: dict[str, Mean]
    learning_rate: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array
    """() bool: nothing is wrong. A step left out because the loss scale was too large is not."""


@dataclasses.dataclass(frozen=True)
class Training:
    """The ingredients of a step."""

    model: Model
    task: Task
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    augment: Augment
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    remat: str = "none"
    """Name of a policy in `jax.checkpoint_policies`: what to keep of the forward pass for the backward one."""
    non_finite: Literal["stop", "skip"] = "stop"
    precision: Precision = "float32"
    lowering: Literal["auto", "xla"] = "auto"

    def init(self) -> TrainState:
        """The state before the first step, a function of the seed alone."""
        params, model_state = self.model.init(jax.random.key(self.seed))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            model_state=model_state,
            opt_state=self.tx.init(params),
            ema=jax.tree.map(jnp.copy, params) if self.ema else None,
            halted=jnp.bool_(False),
            loss_scale=LOSS_SCALE.init() if self.precision == "float16" else None,
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """One update. All randomness comes from (seed, step, index of the example)."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        batch = self.augment(jax.random.fold_in(key, 0), batch)
        grads, means, model_state = self._gradients(state, batch, jax.random.fold_in(key, 1))
        if state.loss_scale is not None:
            grads, _ = LOSS_SCALE.unscale(grads, state.loss_scale)
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(means["loss"].total) & jnp.isfinite(norm)
        moved = dataclasses.replace(
            state,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=self._averaged(state.ema, params),
        )
        # A select and no branch: XLA fuses it into the update, and nothing waits for the host to decide.
        use = finite & ~state.halted
        new = jax.tree.map(lambda now, before: jnp.where(use, now, before), moved, state)
        if state.loss_scale is not None:
            # An overflow of the gradient alone is how the scale is found: that step is left out, and all is well.
            too_large = state.loss_scale.scale > LOSS_SCALE.minimum
            overflow = jnp.isfinite(means["loss"].total) & ~jnp.isfinite(norm) & too_large
            new = dataclasses.replace(new, loss_scale=LOSS_SCALE.update(state.loss_scale, finite))
            finite |= overflow
        goes_on = (finite & ~state.halted) | (self.non_finite == "skip")
        new = dataclasses.replace(new, step=state.step + goes_on, halted=~goes_on)
        return new, StepMetrics(means, jnp.asarray(self.schedule(state.step)), norm, finite)

    def evaluate(self, weights: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Mean]:
        """The task's metrics of one batch, as sums."""
        return self.task.evaluate(self.bind(weights, model_state), batch)

    def bind(self, weights: PyTree, model_state: PyTree) -> Callable[..., PyTree]:
        """The model in evaluation mode as a function of its inputs alone."""
        key = jax.random.key(self.seed)  # unused in evaluation mode, but the signature asks for one

        def apply(weights: PyTree, *inputs: PyTree) -> PyTree:
            return self.model.apply(weights, model_state, *inputs, key=key, train=False)[0]

        return partial(TRANSFORMATIONS[self.precision](apply), weights)

    def lowered(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f` with its convolutions and poolings in the forms that this backend runs fast, or as XLA has them."""
        # A batch that is split over devices must not be cut into pieces as well.
        return retarget(f, argnums=()) if self.lowering == "auto" and jax.device_count() == 1 else f

    def _gradients(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[PyTree, dict[str, Mean], PyTree]:
        apply = partial(self.model.apply, train=True)
        if self.remat != "none":
            policy = getattr(jax.checkpoint_policies, self.remat)
            apply = jax.checkpoint(apply, policy=policy)

        def loss_fn(
            params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            outputs, model_state = apply(params, model_state, *self.task.inputs(batch), key=key)
            loss, means = self.task.loss(outputs, batch)
            if state.loss_scale is not None:
                loss = LOSS_SCALE.scale(loss, state.loss_scale)
            return loss, (means, model_state)

        grad_fn = jax.grad(TRANSFORMATIONS[self.precision](loss_fn), has_aux=True)
        if self.accumulate == 1:
            grads, (means, model_state) = grad_fn(state.params, state.model_state, batch, key)
            return grads, means, model_state

        def part(carry: tuple[PyTree, PyTree], item: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            total, model_state = carry
            i, batch = item
            grads, (means, model_state) = grad_fn(
                state.params, model_state, batch, jax.random.fold_in(key, i)
            )
            return (jax.tree.map(jnp.add, total, grads), model_state), means

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        parts = jax.tree.map(lambda x: _dealt(x, self.accumulate), dict(batch))
        (total, model_state), means = loop(
            part, (zeros, state.model_state), (jnp.arange(self.accumulate), parts)
        )
        grads = jax.tree.map(lambda g: g / self.accumulate, total)
        return grads, jax.tree.map(lambda x: x.sum(0), means), model_state

    def _averaged(self, ema: PyTree, params: PyTree) -> PyTree:
        return None if ema is None else optax.incremental_update(params, ema, 1 - self.ema)


def several(training: Training, constrain: Callable[[Batch], Batch] = lambda batch: batch) -> Callable:
    """(state, arrays, fed) -> (state, metrics): as many steps in one call as `fed` has rows.

    `fed` holds ``index`` and ``mask`` (k, B), and, where the data is streamed, the batches themselves. Where
    the data set lives on the device, `arrays` holds it and each step gathers its batch there.
    """

    def steps(state: TrainState, arrays: Arrays, fed: Batch) -> tuple[TrainState, StepMetrics]:
        def body(state: TrainState, item: Batch) -> tuple[TrainState, StepMetrics]:
            return training.lowered(training.step)(state, constrain(gather(arrays, item)))

        return loop(body, state, dict(fed))

    return steps


def several_evaluations(
    training: Training, constrain: Callable[[Batch], Batch] = lambda batch: batch
) -> Callable:
    """(weights, model_state, arrays, fed) -> the metrics of all rows of `fed`, as sums."""

    def evaluations(weights: PyTree, model_state: PyTree, arrays: Arrays, fed: Batch) -> dict[str, Mean]:
        def body(carry: None, item: Batch) -> tuple[None, dict[str, Mean]]:
            evaluate = training.lowered(training.evaluate)
            return None, evaluate(weights, model_state, constrain(gather(arrays, item)))

        _, means = loop(body, None, dict(fed))
        return jax.tree.map(lambda x: x.sum(0), means)

    return evaluations


def gather(arrays: Arrays, item: Batch) -> dict[str, jax.Array]:
    """The batch that ``item["index"]`` names, out of `arrays`; what `item` brings itself stays."""
    return {name: array[item["index"]] for name, array in arrays.items()} | dict(item)


def loop(body: Callable, carry: PyTree, items: PyTree) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan`, unrolled on the CPU.

    XLA:CPU runs convolutions inside a while loop without its threaded kernels: a small ConvNet's step took
    15 to 20 times longer in a rolled scan than outside it (`benchmarks/train_step.py --rolled` shows it).
    """
    length = jax.tree.leaves(items)[0].shape[0]
    if jax.default_backend() != "cpu" and length > 1:
        return jax.lax.scan(body, carry, items)
    rows = []
    for i in range(length):  # scan(unroll=True) keeps the loop where the length is 1
        carry, row = body(carry, jax.tree.map(lambda x, i=i: x[i], items))
        rows.append(row)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _dealt(x: jax.Array, parts: int) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...), dealt like cards so that a split batch axis stays where it is."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
