"""What all classification shares: one label an example, softmax cross-entropy, accuracy, a report of the classes."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxaccel.errors import UserError, option
from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.prediction import Guess, classify
from jaxaccel.tasks.task import Apply, Batch, PyTree, Task

T = TypeVar("T", bound="Classification")


class Classification(Task):
    """Base of tasks whose batches hold ``label`` (B,) int32 and whose models give logits (B, classes)."""

    logits: ClassVar[bool] = True
    label_smoothing: float
    class_weights: Literal["balanced"] | tuple[float, ...]

    def check_values(self) -> None:
        """Checks that some class has a weight."""
        if self._weights and not any(self._weights):
            raise UserError(f"{option('class_weights')} must be above 0 for some class, got {self._weights}")

    def check_class_weights(self, classes: int) -> None:
        """Checks that there are as many class weights as classes, or none.

        Raises:
          UserError: there are not.
        """
        if self._weights and len(self._weights) != classes:
            raise UserError(
                f"{option('task.class_weights')} has {len(self._weights)} numbers and the data {classes} "
                "classes: give one a class, in the order of the classes, or balanced"
            )

    def fit_class_weights(self: T, labels: np.ndarray, names: tuple[str, ...]) -> T:
        """The task with numbers in the place of balanced weights.

        Args:
          labels: (n,) integers, of the training split.
          names: of the classes.
        """
        weights = balance_class_weights(labels, len(names))
        least, most = (names[i] for i in (np.argmin(weights), np.argmax(weights)))
        logging.getLogger(__name__).info(
            f"class weights, balanced: {min(weights):.3g} ({least}) to {max(weights):.3g} ({most})"
        )
        task: Any = self
        return dataclasses.replace(task, class_weights=weights)

    def check(self, outputs: PyTree, facts: Mapping[str, Any]) -> None:
        """The model must give one logit a class."""
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2:
            raise UserError(f"the model must give logits of shape (batch, classes), it gives {outputs}")
        if shape[1] != facts["classes"]:
            raise UserError(
                f"the model gives {shape[1]} logits and the data has {facts['classes']} classes: make the model "
                f"with classes={facts['classes']}, or take `classes` as an argument to be told"
            )

    def loss(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array | Mean, dict[str, Mean]]:
        """Mean over the batch of the cross-entropy, times the weight of the label's class where classes have weights.

        Mixed labels (`augment.mixup`) are weighed as mixed. The sum is divided by the number of examples and not by
        that of their weights: an example counts as much whatever else is in its batch.

        Raises:
          UserError: the class weights are to be balanced and `fit` has not counted the labels.
        """
        labels, counts = batch["label"], self.weights(batch)
        losses = self._cross_entropy(outputs, labels)
        if "mix_weight" in batch:
            weight = batch["mix_weight"]
            losses = (1 - weight) * losses + weight * self._cross_entropy(outputs, batch["mix_label"])
        loss = Mean.of(losses, counts)
        return loss.value(), {"loss": loss, "accuracy": Mean.of(outputs.argmax(-1) == labels, counts)}

    def evaluate(self, apply: Apply, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """``accuracy`` and ``loss`` (cross-entropy without smoothing)."""
        logits, labels, counts = self.predict(apply, batch), batch["label"], self.weights(batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"accuracy": Mean.of(logits.argmax(-1) == labels, counts), "loss": Mean.of(losses, counts)}

    def describe(
        self, given: Any, prediction: PyTree, facts: Mapping[str, Any], *, top: int
    ) -> dict[str, Any]:
        """``label``, the name of the most probable class, and ``scores``, the probabilities of the `top` ones.

        Probabilities add up to 1 over all classes, and are rounded to six decimals.
        """
        guesses = self.guess(prediction, facts, top)
        scores = {guess.name: round(guess.probability, 6) for guess in guesses}
        return {"label": guesses[0].name, "scores": scores}

    def guess(self, logits: np.ndarray, facts: Mapping[str, Any], top: int) -> list[Guess]:
        """The `top` most probable classes of one example, by its logits (classes,).

        Raises:
          UserError: they are no finite logits of the classes.
        """
        guesses: Any = classify(logits, facts.get("class_names"), top)
        if not np.isfinite(logits).all():
            raise UserError("the model's outputs are NaN or infinite")
        return guesses

    def judge(self, predictions: jax.Array, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``label`` and ``predicted`` (B,) int32, their probabilities ``of_label`` and ``probability`` (B,) float32."""
        probabilities = np.asarray(jax.nn.softmax(jnp.asarray(predictions, jnp.float32)))
        label, rows = np.asarray(batch["label"]), np.arange(len(probabilities))
        predicted = probabilities.argmax(-1).astype(np.int32)
        return {
            "label": label, "predicted": predicted, "probability": probabilities[rows, predicted],
            "of_label": probabilities[rows, label],
        }  # fmt: skip

    def report(self, judged: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> ClassReport:
        """The confusion matrix and what follows from it for each class; examples of no class are left out."""
        known = judged["label"] >= 0
        return ClassReport.of(judged["label"][known], judged["predicted"][known], facts["class_names"])

    @property
    def _weights(self) -> tuple[float, ...]:
        """The class weights that are numbers."""
        return () if isinstance(self.class_weights, str) else self.class_weights

    def _cross_entropy(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """(B,) float32, smoothed and weighed by class."""
        if isinstance(self.class_weights, str):
            raise UserError("balanced class weights need the training labels: task.fit(source) counts them")
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        smooth = optax.smooth_labels(targets, self.label_smoothing)
        losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth)
        return losses * jnp.asarray(self.class_weights, jnp.float32)[labels] if self.class_weights else losses


def balance_class_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """``len(labels) / (classes * count)`` for each class, so that all classes weigh alike; 0 where there is no example.

    Args:
      labels: (n,) integers.
      classes: how many there are.
    """
    counts = np.bincount(labels, minlength=classes)[:classes]
    return tuple((np.where(counts > 0, len(labels) / (classes * np.maximum(counts, 1)), 0.0)).tolist())


def read_labels(source: Any, key: str = "label", chunk: int = 512) -> np.ndarray:
    """The labels of all examples of a split, (n,) int64. It reads the examples whole."""
    starts = range(0, len(source), chunk)
    rows = (source.__getitems__(range(start, min(start + chunk, len(source)))) for start in starts)
    return np.array([int(example[key]) for row in rows for example in row], np.int64)
