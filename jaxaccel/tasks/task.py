"""What a task is: the only things that the trainer asks of it.

A task says what one example looks like, what the model is fed, what the loss is, what it predicts and how
well that is. It holds options and no arrays: every method is a pure function. The trainer never looks into a
batch: padding of variable-length inputs, teacher forcing and decoding loops live in the task.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from jaxaccel.core.options import Options
from jaxaccel.data.examples import READ_EXAMPLES, read_elements
from jaxaccel.errors import UserError
from jaxaccel.tasks.bring_arrays import Example, Given, find_sole_input, split_arrays
from jaxaccel.tasks.metrics import Headline, Mean, as_scores
from jaxaccel.tasks.reading import Reading
from jaxaccel.tasks.rows import Evaluated, join_rows, split_rows

PyTree = Any
Batch = Mapping[str, jax.Array]
Apply = Callable[..., PyTree]
"""The model in evaluation mode, its parameters bound: inputs -> outputs. ``apply.encode`` is its method `encode`."""


class Task(Reading, Options, abc.ABC):
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
    own_facts: ClassVar[tuple[str, ...]] = ()
    """Facts that belong to a model and not to the data: a teacher keeps its own."""

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

    def learned_facts(self) -> dict[str, Any]:
        """Those of `facts` that follow from what `fit` learned, and not from the features; by default none."""
        return {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Parts of an example that options of the task name, without which it reads none; by default none."""
        return ()

    def fit(self, source: Any) -> "Task":
        """The task with the options that follow from the training split, before training; by default as it is."""
        return self

    def after(self, fitted: Mapping[str, Any]) -> "Task":
        """The task for a model that starts from the weights of another run, whose task had these `fitted` options.

        What those weights mean by their inputs must stay. By default the task as it is.
        """
        return self

    def beside(self, teacher: "Task") -> "Task":
        """The task whose batches also hold what the model of `teacher`, a fitted task, reads.

        By default the task as it is: both models read the same.
        """
        return self

    def teacher_batch(self, batch: Batch) -> Batch:
        """A batch of `beside` as the teacher's task has it; by default as it is."""
        return batch

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One decoded example of the data set as arrays of fixed shape and dtype (on the host).

        By default all that it holds, numbers of 64 bits as such of 32.
        """
        return {name: _narrow(np.asarray(value)) for name, value in example.items()}

    @property
    def bounds(self) -> tuple[int, ...]:
        """Lengths to which examples are filled up, rising, each of which is a program; () where all have one shape.

        Where there are such, `element` may give arrays of any length, and `length` and `pad` are needed as well. The
        same example must mean the same whatever it is filled up to.
        """
        return ()

    def length(self, element: Mapping[str, np.ndarray]) -> int:
        """The length of what `element` gave, by which examples come together: tokens, or frames."""
        raise NotImplementedError(f"{type(self).__name__} has bounds and no length()")

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """What `element` gave, with arrays of fixed shape: filled up to `length`, or cut there."""
        raise NotImplementedError(f"{type(self).__name__} has bounds and no pad()")

    def lengths(self, source: Any, advance: Callable[[int], Any] = lambda n: None) -> np.ndarray:
        """(n,) int64: the length of each example of a split; `advance(n)` is told of every n read.

        By default all are read. A task whose files say their lengths in front may read less.
        """
        found: list[int] = []
        for start in range(0, len(source), READ_EXAMPLES):
            indices = range(start, min(start + READ_EXAMPLES, len(source)))
            found += [self.length(row) for row in read_elements(source, self.element, indices)]
            advance(len(indices))
        return np.array(found, np.int64)

    def example(self, example: Mapping[str, Any], length: int = 0) -> dict[str, np.ndarray]:
        """`element` filled up to `length`, by default to the greatest of `bounds`; as it is where there are none."""
        element = self.element(example)
        return self.pad(element, length or self.bounds[-1]) if self.bounds else element

    def features(self, batch: Batch) -> Batch:
        """The batch with what is computed of it on the device before the model: spectrograms, say.

        It runs in float32, after the augmentations of what is raw and before those of features. All methods below see
        its result. By default the batch as it is.
        """
        return batch

    @abc.abstractmethod
    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """What the model is called with."""

    def sample(self, source: Any, count: int = 1000) -> np.ndarray:
        """The first input of the model for the first examples of a split, for models that start from data."""
        examples = [self.example(example) for example in source.__getitems__(range(min(count, len(source))))]
        batch: Any = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        return np.asarray(self.inputs(self.features(batch))[0])

    def check(self, outputs: PyTree, facts: Mapping[str, Any]) -> None:
        """Checks the shapes of the model's outputs (`jax.ShapeDtypeStruct`) against the data; by default not at all.

        Raises:
          UserError: they do not fit.
        """

    @abc.abstractmethod
    def loss(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array | Mean, dict[str, Mean]]:
        """The loss to minimize, and what to report of the step.

        A `Mean` is divided once, over all parts that are accumulated and all devices, so that each label or token
        counts as much wherever it stands. Its count must not depend on the outputs. Of a scalar, parts are averaged.
        Without a ``loss`` among what is reported it is the loss itself.
        """

    def weights(self, batch: Batch) -> jax.Array:
        """How much each of the predictions counts, (B,) or (B, ...): those of padding must be 0. By default the mask.

        A student learns from its teacher by these weights; they are those of `loss`.
        """
        return batch["mask"]

    def predict(self, apply: Apply, batch: Batch) -> PyTree:
        """Predictions for a batch; may call the model as often as it needs (decoding, augmented views).

        By default the model's outputs.
        """
        return apply(*self.inputs(batch))

    def evaluate(self, apply: Apply, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """Metrics of a batch as sums; examples with mask 0 count for nothing. By default what `loss` reports.

        Arrays (B, ...) that are no `Mean` are rows, such as the ids of a transcript: those of the whole split go to
        `score`, in its order and without what filled batches up.
        """
        return self.loss(self.predict(apply, batch), batch)[1]

    def summarize(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The numbers to report from the sums over all batches."""
        return {name: float(mean.value()) for name, mean in means.items()}

    def score(self, rows: Mapping[str, Sequence[np.ndarray]], source: Any) -> dict[str, float]:
        """What only a whole split can be judged by, computed on the host of the rows of `evaluate`; nothing by default.

        Args:
          rows: by name one array an example, in the order of the split.
          source: the split.
        """
        return {}

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

    def describe(
        self, given: Any, prediction: PyTree, facts: Mapping[str, Any], *, top: int
    ) -> dict[str, Any]:
        """What to write of one prediction, as JSON has it; by default ``prediction``, with its arrays as lists.

        Args:
          given: of which it is, as `read` gave it.
          prediction: of the one example, as NumPy arrays without a batch axis.
          facts: what the run keeps of its data: ``class_names``, ...
          top: how many classes to name, where there are classes.

        Raises:
          UserError: there is nothing to say: it is not finite, for instance.
        """
        return {"prediction": jax.tree.map(lambda x: np.asarray(x).tolist(), prediction)}

    def relabel(self, example: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
        """An example of the data that says what the model says of it, for another model to train on.

        By default all that `describe` says.

        Args:
          example: of the data set.
          described: what `describe` says of its prediction.
        """
        return dict(described)

    def judge(self, predictions: PyTree, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `report` needs of each example, from one batch of predictions and of the data; by default nothing."""
        return {}

    def show(self, example: Mapping[str, Any]) -> np.ndarray | str | None:
        """What a person looks at to see an example of the data: a picture (H, W, C), or a text; by default nothing."""
        return None

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

    def evaluate(outputs: PyTree, batch: PyTree) -> Evaluated:
        batch = task.features(batch)
        return split_rows(task.evaluate(lambda *_: outputs, batch), batch)

    try:
        means, rows = jax.eval_shape(evaluate, outputs, batch)
        names = list(task.summarize(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), means)))
    except Exception:  # a task that decodes calls its model otherwise: its first evaluation will show
        return
    if headline.name in names or not rows:  # else it comes of rows, and the first evaluation will show
        headline.check(type(task).__name__, names)


def summarize_split(
    task: Task, means: Mapping[str, Mean], rows: Sequence[Mapping[str, Any]], source: Any
) -> dict[str, float]:
    """The scores of a whole split, from the sums over its batches and the rows of each."""
    return as_scores(
        dict(task.summarize(means)) | dict(task.score(join_rows(rows), source) if any(rows) else {})
    )


def _narrow(array: np.ndarray) -> np.ndarray:
    """`array` in the dtype that JAX computes with."""
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32}
    return array.astype(narrow.get(array.dtype, array.dtype), copy=False)
