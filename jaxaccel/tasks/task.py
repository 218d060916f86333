"""What a task is: the only things that the trainer asks of it.

A task says what one example looks like, what the model is fed, what the loss is, what it predicts and how
well that is. It holds options and no arrays: every method is a pure function. The trainer never looks into a
batch: padding of variable-length inputs, teacher forcing and decoding loops live in the task.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from jaxaccel.core.options import Options
from jaxaccel.errors import UserError
from jaxaccel.tasks.bring_arrays import Example, Given, find_sole_input, split_arrays
from jaxaccel.tasks.metrics import Headline, Mean

PyTree = Any
Batch = Mapping[str, jax.Array]
Apply = Callable[..., PyTree]
"""The model in evaluation mode with its parameters bound: inputs -> outputs."""


class Task(Options, abc.ABC):
    """Base of all tasks: a frozen dataclass whose fields are its options.

    `inputs` and `loss` are all that a task must define. Batches carry ``index`` and ``epoch`` (B,) int32 and ``mask``
    (B,) float32 besides what `element` gives. ``docs/guides/tasks.md`` shows how to write one.
    """

    metric: ClassVar[str] = "accuracy"
    """The headline: the metric of `evaluate` by which the best checkpoint is kept and replicas are compared."""
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    """Which values of `metric` are better: of an error, lower ones."""
    logits: ClassVar[bool] = False
    """Whether the model's outputs are logits over classes, from which a student can learn by soft targets."""

    @property
    def headline(self) -> Headline:
        """`metric` and `better` as one value that compares scores.

        Raises:
          UserError: `better` is neither "higher" nor "lower".
        """
        return Headline(self.metric, self.better)

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """What model factories may ask for (``classes``, ``channels``, ...), read off the data's features.

        By default nothing.

        Raises:
          UserError: the data set cannot be used for this task.
        """
        return {}

    def fit(self, source: Any) -> "Task":
        """The task with the options that follow from the training split, before training; by default as it is."""
        return self

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One decoded example of the data set as arrays of fixed shape and dtype (on the host).

        By default all that it holds, numbers of 64 bits as such of 32.
        """
        return {name: _narrow(np.asarray(value)) for name, value in example.items()}

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """What the model is called with."""

    def sample(self, source: Any, count: int = 1000) -> np.ndarray:
        """The first input of the model for the first examples of a split, for models that start from data."""
        examples = [self.element(example) for example in source.__getitems__(range(min(count, len(source))))]
        batch: Any = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        return np.asarray(self.inputs(batch)[0])

    def check(self, outputs: PyTree, facts: Mapping[str, Any]) -> None:
        """Checks the shapes of the model's outputs (`jax.ShapeDtypeStruct`) against the data; by default not at all.

        Raises:
          UserError: they do not fit.
        """

    @abc.abstractmethod
    def loss(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array, dict[str, Mean]]:
        """The loss to minimize, a scalar, and what to report of the step.

        Without a ``loss`` among the latter the scalar itself is reported.
        """

    def predict(self, apply: Apply, batch: Batch) -> PyTree:
        """Predictions for a batch; may call the model as often as it needs (decoding, augmented views).

        By default the model's outputs.
        """
        return apply(*self.inputs(batch))

    def evaluate(self, apply: Apply, batch: Batch) -> dict[str, Mean]:
        """Metrics of a batch as sums; examples with mask 0 count for nothing.

        By default what `loss` reports of the predictions.
        """
        return self.loss(self.predict(apply, batch), batch)[1]

    def summarize(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The numbers to report from the sums over all batches."""
        return {name: float(mean.value()) for name, mean in means.items()}

    def bring(self, given: Any, example: Example, size: int) -> Given:
        """What a person has, to be predicted, as batches of up to `size` examples; labels may be missing.

        By default ``{name: array}`` of one example or of many, or the array alone where `inputs` reads only one.

        Args:
          given: of the user.
          example: shape and dtype of each array of one example, as `element` made them in training.
          size: examples in a batch at most.

        Raises:
          UserError: it is no such thing; the message says what the model takes.
        """
        return split_arrays(self._named(given, example), example, size)

    def batch_of(self, given: Any, example: Example) -> Batch:
        """What `bring` makes of arrays with a batch axis, inside a program: nothing of their values is checked."""
        return self._named(given, example)

    def judge(self, predictions: PyTree, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `report` needs of each example, from one batch of predictions and of the data; by default nothing."""
        return {}

    def report(self, judged: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Any:
        """What there is to say of a whole split besides the metrics, from all that `judge` gave; by default None."""
        return None

    def _named(self, given: Any, example: Example) -> dict[str, Any]:
        if isinstance(given, Mapping):
            return dict(given)
        name = find_sole_input(self.inputs, example)
        if name is None:
            raise UserError(f"the model reads several arrays: give a dictionary with {', '.join(example)}")
        return {name: given}


def check_metrics(task: Task, outputs: PyTree, batch: PyTree) -> None:
    """Checks, before anything is computed, that `task` reports its headline.

    Args:
      task: whose metrics they are.
      outputs: shapes of the model's outputs for `batch`.
      batch: shapes of a batch, as `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: it does not, or a metric has a name of the trainer's own.
    """
    headline = task.headline
    try:
        means = jax.eval_shape(lambda out, batch: task.evaluate(lambda *_: out, batch), outputs, batch)
        names = list(task.summarize(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), means)))
    except Exception:  # a task that decodes calls its model otherwise: its first evaluation will show
        return
    headline.check(type(task).__name__, names)


def _narrow(array: np.ndarray) -> np.ndarray:
    """`array` in the dtype that JAX computes with."""
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32}
    return array.astype(narrow.get(array.dtype, array.dtype), copy=False)
