"""Predictions for what a person has at hand, in batches of few sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxaccel.errors import UserError
from jaxaccel.tasks.bring_arrays import BOOKKEEPING, Example, batch_shapes
from jaxaccel.tasks.task import Task

PyTree = Any
BATCH = 256
"""Examples that are predicted at a time."""


class Guess(NamedTuple):
    """A class and how probable a model finds it."""

    name: str
    probability: float


def predict(
    task: Task,
    example: Example,
    compute: Callable[[Mapping[str, Any]], PyTree],
    given: Any,
    *,
    size: int = BATCH,
    axis: int = 0,
    **options: Any,
) -> PyTree:
    """What `compute` makes of batches of all that is given, as NumPy arrays.

    Batches hold `size` examples; the last one is filled up to a power of two with copies of its last example, so that
    any number of examples compiles few programs.

    Where examples vary in length, so do the predictions of batches. They are filled up behind to the widest: whole
    numbers with -1, floats with 0 and booleans with False.

    Args:
      task: brings what is given to batches.
      example: shape and dtype of each array of one example.
      compute: batch -> predictions; compiled.
      given: as the task's `bring` takes it.
      size: examples in a batch at most.
      axis: of the predictions that counts examples.
      options: of the task's `bring`.

    Raises:
      UserError: the task cannot bring it to the model's input.
    """
    brought = task.bring(given, example, size, **options)
    try:
        parts = [_cut(compute(_filled(batch, size)), len(_any(batch)), axis) for batch in brought.batches]
    except KeyError as error:
        if error.args[:1] == () or error.args[0] not in example:
            raise
        raise UserError(f"predictions need {error.args[0]} as well: give a dictionary with it") from error
    if not parts:
        one = jax.eval_shape(compute, batch_shapes(example, 1))
        parts = [_cut(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), one), 0, axis)]
    joined = jax.tree.map(lambda *x: _join(x, axis), *parts)
    return jax.tree.map(lambda x: x.take(0, axis), joined) if brought.single else joined


def find_refused(task: Task, example: Example, given: Sequence[Any]) -> dict[int, str]:
    """Why the task cannot bring some of what is given to the model's input, by their numbers; nothing is computed."""
    if (reason := _refusal(task, example, given)) is None:
        return {}
    if len(given) == 1:
        return {0: _refusal(task, example, given[0]) or reason}
    half = len(given) // 2
    later = find_refused(task, example, given[half:])
    return find_refused(task, example, given[:half]) | {half + i: said for i, said in later.items()}


def classify(
    logits: np.ndarray, class_names: tuple[str, ...] | None, top: int
) -> list[Guess] | list[list[Guess]]:
    """The `top` most probable classes, the first one first, by logits (classes,) or (B, classes).

    Raises:
      UserError: they are no logits of these classes.
    """
    if not class_names or np.shape(logits)[-1:] != (len(class_names),) or np.ndim(logits) > 2:
        raise UserError("only predictions that are logits of classes have class names: use predict")
    if logits.ndim == 2:
        return [_guesses(row, class_names, top) for row in logits]
    return _guesses(logits, class_names, top)


def _guesses(logits: np.ndarray, class_names: tuple[str, ...], top: int) -> list[Guess]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")[:top]
    return [Guess(class_names[i], float(powers[i] / powers.sum())) for i in order]


def _refusal(task: Task, example: Example, given: Any) -> str | None:
    try:
        for _ in task.bring(given, example, BATCH).batches:
            pass
    except UserError as error:
        return str(error)
    return None


def _filled(batch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """`batch` with what every batch has, filled up to a power of two or to `size`."""
    count = len(_any(batch))
    whole = min(size, 1 << (count - 1).bit_length())
    own = {"index": np.arange(count), "epoch": np.zeros(count), "mask": np.ones(count)} | dict(batch)
    filled = {name: np.concatenate([x, np.repeat(x[-1:], whole - count, axis=0)]) for name, x in own.items()}
    return filled | {name: filled[name].astype(dtype) for name, dtype in BOOKKEEPING.items()}


def _cut(predictions: PyTree, count: int, axis: int) -> PyTree:
    first = (*[slice(None)] * axis, slice(count))
    return jax.tree.map(lambda x: np.asarray(x)[first], predictions)


def _join(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Predictions one after another along `axis`, filled up to the widest along all others."""
    widest = np.max([x.shape for x in parts], axis=0)
    fill = -1 if np.issubdtype(parts[0].dtype, np.signedinteger) else 0

    def widen(x: np.ndarray) -> np.ndarray:
        wanted = [(0, 0 if i == axis else int(widest[i] - n)) for i, n in enumerate(x.shape)]
        return np.pad(x, wanted, constant_values=fill) if any(map(any, wanted)) else x

    return np.concatenate([widen(x) for x in parts], axis)


def _any(batch: Mapping[str, Any]) -> Any:
    return next(iter(batch.values()))
