"""A trained model as a function of named arrays, weights and inputs alike, which programs are made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.interpret import find_used
from jaxaccel.core.paths import path_text
from jaxaccel.deployment.signature import SOLE_OUTPUTS, Signature, TensorSpec
from jaxaccel.errors import UserError
from jaxaccel.models.bound import Bound
from jaxaccel.tasks import Task
from jaxaccel.tasks.bring_arrays import BOOKKEEPING, Example

PyTree = Any
Named = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelFunction:
    """What a task predicts, as ``call(weights, inputs) -> outputs``, each by name; batches may be of any size."""

    call: Callable[[Named, Named], dict[str, jax.Array]]
    weights: Mapping[str, np.ndarray]
    """The arrays of the parameters that it needs; of compressed ones each part, as ``params/head/kernel/qvalue``."""
    examples: Mapping[int, Mapping[str, jax.ShapeDtypeStruct]]
    """The inputs of one example, without a batch axis, by the length that they are filled up to. Where examples have
    one shape, 0 is the only length."""

    def batch_shapes(self, count: Any, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the inputs of `count` examples, which may be a symbolic dimension."""
        return {
            name: jax.ShapeDtypeStruct((count, *x.shape), x.dtype)
            for name, x in self.examples[length].items()
        }

    def weight_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the weights."""
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.weights.items()}

    def find_signature(self) -> Signature:
        """What it takes and gives: axes that differ with the length vary, and the first one does."""
        inputs = [self.batch_shapes(1, length) for length in self.examples]
        outputs = [jax.eval_shape(self.call, self.weight_shapes(), shapes) for shapes in inputs]
        return Signature(_join_shapes(inputs), _join_shapes(outputs))

    def make_inputs(self, count: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Makes some inputs: noise, and numbers from 1 to 3 where they are whole, as all tokens and lengths may be."""
        rng = np.random.default_rng(seed)
        return {name: _make_array(x, rng) for name, x in self.batch_shapes(count, length).items()}


def make_function(task: Task, example: Example, run: Callable[..., PyTree], params: PyTree) -> ModelFunction:
    """Makes the function of a task's predictions.

    Args:
      task: predicts.
      example: shape and dtype of each array of one example; labels may be among them.
      run: (params, *inputs of the model) -> outputs, in inference.
      params: its first argument, with compressed arrays or without.

    Raises:
      UserError: predictions are neither an array nor arrays by name.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    arrays = {path_text(path): x for path, x in leaves}
    predict = name_predictions(task, run)

    def call(weights: Named, inputs: Named) -> dict[str, jax.Array]:
        params = [weights.get(name, x) for name, x in arrays.items()]
        return predict(jax.tree.unflatten(treedef, params), inputs)

    examples = {length: _shape_example(task, example, length) for length in task.bounds or (0,)}
    whole = ModelFunction(call, {}, examples)
    used, needed = find_used(call, arrays, whole.batch_shapes(1, max(examples)))
    return ModelFunction(
        call,
        {name: np.asarray(x) for name, x in arrays.items() if used[name]},
        {
            length: {name: x for name, x in shapes.items() if needed[name]}
            for length, shapes in examples.items()
        },
    )


def name_predictions(
    task: Task, run: Callable[..., PyTree]
) -> Callable[[PyTree, Named], dict[str, jax.Array]]:
    """Makes ``predict(params, inputs)`` of a task's predictions, both inputs and outputs by name.

    Args:
      task: predicts.
      run: (params, *inputs of the model) -> outputs, in inference.
    """

    sole = SOLE_OUTPUTS[0 if task.logits else 1]

    def predict(params: PyTree, inputs: Named) -> dict[str, jax.Array]:
        found = task.predict(Bound(run, params), task.features(dict(inputs) | _count_examples(inputs)))
        if isinstance(found, (jax.Array, np.ndarray)):
            return {sole: jnp.asarray(found)}
        named = isinstance(found, Mapping) and all(hasattr(x, "shape") for x in found.values())
        if not named or (len(found) == 1 and {*found} <= {*SOLE_OUTPUTS}):
            raise UserError("only predictions that are an array, or several arrays by name, can be exported")
        return dict(found)

    return predict


def _shape_example(task: Task, example: Example, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one example that is filled up to `length`, which is 0 where all have one shape."""
    if not length:
        return dict(example)
    padded = task.pad({name: np.zeros(x.shape, x.dtype) for name, x in example.items()}, length)
    arrays = {name: np.asarray(x) for name, x in padded.items()}
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items() if name not in BOOKKEEPING
    }


def _count_examples(inputs: Named) -> dict[str, jax.Array]:
    """What each batch has besides its arrays: all examples are real, and what is drawn is drawn alike for each."""
    count = next(iter(inputs.values())).shape[0]
    return {name: jnp.full((count,), name == "mask", dtype) for name, dtype in BOOKKEEPING.items()}


def _join_shapes(found: Sequence[Mapping[str, jax.ShapeDtypeStruct]]) -> tuple[TensorSpec, ...]:
    """The specs of arrays whose shapes are given for every length."""
    return tuple(
        TensorSpec(name, str(first.dtype), (None, *_join_sizes([x[name].shape[1:] for x in found])))
        for name, first in found[0].items()
    )


def _join_sizes(shapes: Sequence[tuple[int, ...]]) -> tuple[int | None, ...]:
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def _make_array(x: jax.ShapeDtypeStruct, rng: np.random.Generator) -> np.ndarray:
    if x.dtype == np.uint8:
        return rng.integers(0, 256, x.shape, np.uint8)
    if np.issubdtype(x.dtype, np.integer):
        return rng.integers(1, 4, x.shape).astype(x.dtype)
    return rng.standard_normal(x.shape).astype(x.dtype)
