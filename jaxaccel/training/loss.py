"""The loss of a step and its gradient: of a whole batch or of parts that are accumulated, with or without a teacher."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.platform import get_platform
from jaxaccel.models.adapter import Model
from jaxaccel.tasks.metrics import Mean, check_names, value_of
from jaxaccel.tasks.task import Batch, Task
from jaxaccel.training.state import Gradients, TrainState
from jaxaccel.training.teacher import Teacher
from jaxaccel.transforms import LossScale, LossScaleState, bfloat16, fake_int8, float16

PyTree = Any
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
class BatchLoss:
    """What a step minimizes."""

    model: Model
    task: Task
    transform: Callable[[Callable[..., Any]], Callable[..., Any]]
    """What the precision makes of a function, of `TRANSFORMATIONS`."""
    policy: Callable[..., Any] | None
    """What `jax.checkpoint` keeps of the forward pass for the backward one; None keeps all that this needs."""
    accumulate: int
    """Parts that a batch is computed in, one after another."""
    teacher: Teacher | None

    def make(
        self, loss_scale: LossScaleState | None, teacher: PyTree
    ) -> Callable[..., tuple[jax.Array, Any]]:
        """(params, model_state, batch, key) -> (loss, (metrics, new model state, weight)).

        The loss of a whole batch is its mean, weight 1. That of a part is a sum, divided with its weight by the number
        of the part's examples, so that it stays as small as float16 holds: parts are divided by all their weights.
        """
        apply = partial(self.model.apply, train=True)
        if self.policy is not None:
            apply = jax.checkpoint(apply, policy=self.policy)

        def loss_fn(
            params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            def model(params: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
                return apply(params, model_state, *self.task.inputs(batch), key=key)

            if self.teacher is None:
                outputs, new_state = model(params, batch)
                loss, means = self._compute_task_loss(outputs, batch)
            else:
                (outputs, new_state), lesson = self.teacher.teach(model, teacher, self.task)(params, batch)
                loss, means = self._compute_task_loss(outputs, batch)
                loss, means = self.teacher.weighed(loss, lesson), means | {"distill": lesson}
            if self.accumulate == 1 or not isinstance(loss, Mean):
                value, weight = value_of(loss), jnp.float32(1)
            else:
                value, weight = loss.total / len(batch["mask"]), loss.count / len(batch["mask"])
            if loss_scale is not None:
                value = LOSS_SCALE.scale(value, loss_scale)
            return value, (means, new_state, weight)

        return self.transform(loss_fn)

    def compute_gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> Gradients:
        """The loss of a batch and its gradient, in float32 at least."""
        grad_fn = jax.value_and_grad(self.make(state.loss_scale, state.teacher), has_aux=True)

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
                part, (zeros, state.model_state), self._split(batch, key)
            )
            weight = at_least_a_little(weights.sum())
            loss, grads = losses.sum() / weight, jax.tree.map(lambda g: g / weight, total)
            means = jax.tree.map(lambda x: x.sum(0), means)
        if state.loss_scale is not None:
            grads, _ = LOSS_SCALE.unscale(grads, state.loss_scale)
            loss = loss / state.loss_scale.scale
        return Gradients(loss, grads, means, model_state)

    def evaluate_elsewhere(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> dict[str, Callable[..., Any]]:
        """This step's loss and gradient at other parameters, by the names that optimizers ask for them.

        They are for line searches and L-BFGS (``value_fn``), Sophia (``obj_fn``), sharpness-aware minimization
        (``grad_fn``). What is not called costs nothing.
        """

        def value_fn(params: PyTree, **_: Any) -> jax.Array:
            loss_fn = self.make(None, state.teacher)
            if self.accumulate == 1:
                return loss_fn(params, state.model_state, batch, key)[0]
            wide = _wide(params)  # of which a gradient sums its parts in float32

            def part(model_state: PyTree, item: tuple[jax.Array, Batch]) -> tuple[PyTree, Any]:
                here = jax.tree.map(lambda w, p: w.astype(p.dtype), wide, params)
                loss, (_, model_state, weight) = loss_fn(here, model_state, item[1], item[0])
                return model_state, (loss, weight)

            _, (losses, weights) = scan(part, state.model_state, self._split(batch, key))
            return losses.sum() / at_least_a_little(weights.sum())

        def grad_fn(params: PyTree, _: int = 0) -> PyTree:
            return self.compute_gradients(dataclasses.replace(state, params=params), batch, key).grads

        return {"value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}

    def _compute_task_loss(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array | Mean, dict[str, Mean]]:
        """The task's loss and what it reports of it: the loss itself in any case."""
        loss, means = self.task.loss(outputs, batch)
        check_names(type(self.task).__name__, means)
        reported = loss if isinstance(loss, Mean) else Mean(loss.astype(jnp.float32), jnp.float32(1))
        return loss, {"loss": reported, **means}

    def _split(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, Batch]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(self.accumulate))
        return keys, jax.tree.map(lambda x: _dealt(x, self.accumulate), dict(batch))


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
