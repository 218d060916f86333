"""Image classification: one label an image, softmax cross-entropy, accuracy."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxaccel.core.options import CountOrZero, NonNegative, Positive, ShareBelowOne, checked
from jaxaccel.errors import UserError, option
from jaxaccel.tasks import bring_images
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.task import Apply, Batch, PyTree, Task


@dataclasses.dataclass(frozen=True)
class ImageClassification(Task):
    """Batches hold ``image`` (B, H, W, C) uint8 and ``label`` (B,) int32; the model gives logits (B, classes)."""

    logits: ClassVar[bool] = True
    image_size: CountOrZero = 0
    """Resize the shorter side to this and crop the center; 0 takes the images as they are."""
    mean: tuple[float, ...] = (0.5,)
    """Subtract this from the pixels, scaled to [0, 1]: one number a channel, or one for all."""
    std: tuple[Positive, ...] = (0.5,)
    """Divide the pixels by this after that: one number a channel, or one for all."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the label spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: Literal["balanced"] | tuple[NonNegative, ...] = ()
    """Weight of the examples of each class in the training loss: one number a class, or balanced, which counts the
    training labels: examples / (classes * examples of the class). Evaluation is unweighted."""
    tta: Literal["none", "flip", "shift", "multicrop"] = "none"
    """Test-time augmentation, averaging logits: the mirror image too; or moved by one pixel four ways; or, as in Jordan
    2024 (arXiv:2404.00498), mirrored, and moved to two corners by a pixel: what is not moved counts as much as both."""

    def check_values(self) -> None:
        """Checks that some class has a weight."""
        if self._weights and not any(self._weights):
            raise UserError(f"{option('class_weights')} must be above 0 for some class, got {self._weights}")

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """``classes``, ``class_names``, ``channels`` and ``image_size`` (an int, or (H, W) where they differ)."""
        known = dict(features.items())
        image, label = known.get("image"), known.get("label")
        if image is None or label is None:
            raise UserError(
                f"image classification needs the features image and label; the data set has {', '.join(features)}"
            )
        if not getattr(label, "num_classes", None):
            raise UserError(f"image classification needs labels that are numbers of classes, not {label}")
        if len(image.shape) != 3:
            raise UserError(f"image classification needs images (H, W, C), not {image}")
        height, width, channels = image.shape
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels or 3):
                raise UserError(
                    f"{option(f'task.{name}')} has {len(values)} numbers and the images have "
                    f"{channels or 3} channels: give one, or one a channel"
                )
        if self._weights and len(self._weights) != label.num_classes:
            raise UserError(
                f"{option('task.class_weights')} has {len(self._weights)} numbers and the data {label.num_classes} "
                "classes: give one a class, in the order of the classes, or balanced"
            )
        if self.image_size:
            height = width = self.image_size
        elif not (height and width):
            raise UserError(
                f"the data set's images vary in size: give {option('task.image_size')}, 224 for instance"
            )
        return {
            "classes": label.num_classes,
            "class_names": tuple(label.names),
            "channels": channels or 3,
            "image_size": height if height == width else (height, width),
        }

    def fit(self, source: Any) -> "ImageClassification":
        """The task with numbers in the place of balanced weights, for which all labels of the split are read."""
        if not isinstance(self.class_weights, str):
            return self
        label = dict(source.features.items())["label"]
        weights = balance_class_weights(read_labels(source), label.num_classes)
        least, most = (label.names[i] for i in (np.argmin(weights), np.argmax(weights)))
        logging.getLogger(__name__).info(
            f"class weights, balanced: {min(weights):.3g} ({least}) to {max(weights):.3g} ({most})"
        )
        return dataclasses.replace(self, class_weights=weights)

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``image`` (H, W, C), uint8 or float32 from 0 to 1, and ``label`` () int32."""
        image = _as_pixels(np.asarray(example["image"]))
        if self.image_size and image.shape[:2] != (self.image_size,) * 2:
            image = bring_images.resize(image, self.image_size)
        return {"image": image, "label": np.asarray(example["label"], np.int32)}

    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """The images as standardized float32: integers are levels from 0 to 255, floats lie in [0, 1]."""
        return (self._standardize(batch["image"]),)

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

    def loss(self, outputs: PyTree, batch: Batch) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean over the batch of the cross-entropy, times the weight of the label's class where classes have weights.

        Mixed labels (`augment.mixup`) are weighed as mixed. The sum is divided by the number of examples and not by
        that of their weights: an example counts as much whatever else is in its batch.

        Raises:
          UserError: the class weights are to be balanced and `fit` has not counted the labels.
        """
        labels, mask = batch["label"], batch["mask"]
        losses = self._cross_entropy(outputs, labels)
        if "mix_weight" in batch:
            weight = batch["mix_weight"]
            losses = (1 - weight) * losses + weight * self._cross_entropy(outputs, batch["mix_label"])
        loss = Mean.of(losses, mask)
        return loss.value(), {"loss": loss, "accuracy": Mean.of(outputs.argmax(-1) == labels, mask)}

    def predict(self, apply: Apply, batch: Batch) -> jax.Array:
        """Logits (B, classes) float32, averaged over the views of test-time augmentation."""
        images = self._standardize(batch["image"])
        h, w = images.shape[1:3]

        def moved(*places: tuple[int, int], mode: str) -> list[jax.Array]:
            padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
            return [padded[:, 1 + y : 1 + y + h, 1 + x : 1 + x + w] for y, x in places]

        views = [images]
        if self.tta == "shift":
            views += moved((-1, 0), (1, 0), (0, -1), (0, 1), mode="edge")
        elif self.tta == "multicrop":
            views += [images, *moved((-1, -1), (1, 1), mode="reflect")]
        if self.tta in ("flip", "multicrop"):
            views += [view[:, :, ::-1] for view in views]
        return jnp.stack([apply(view).astype(jnp.float32) for view in views]).mean(0)

    def evaluate(self, apply: Apply, batch: Batch) -> dict[str, Mean]:
        """``accuracy`` and ``loss`` (cross-entropy without smoothing)."""
        logits = self.predict(apply, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = logits.argmax(-1) == batch["label"]
        return {"accuracy": Mean.of(correct, batch["mask"]), "loss": Mean.of(losses, batch["mask"])}

    @checked
    def bring(self, given: Any, example: Example, size: int, *, white: Positive | None = None) -> Given:
        """Pictures as the images that the model takes.

        Pixels are levels from 0 to 255 in every dtype, integer or floating point, unless `white` says otherwise.
        Gray becomes RGB and the other way round, what is transparent shows white, as in data sets. Where the task
        has an `image_size`, pictures of any size are resized to it.

        Args:
          given: an array (H, W), (H, W, C), (B, H, W) or (B, H, W, C), a path of an image file, a Pillow image, an
            iterable of these, or ``{"image": ...}`` of one of them.
          example: shape and dtype of each array of one example.
          size: images in a batch at most.
          white: the number of a white pixel: 1 where arrays lie in [0, 1], 65535 of 16 bits. By default 255, and 1 of
            booleans; floats that all lie in [0, 1] are refused then, since they may mean either.

        Raises:
          UserError: a picture cannot be read, or be brought to the size of the model's input, or holds other numbers.
        """
        if isinstance(given, Mapping):
            if "image" not in given:
                raise UserError(f"a batch of images has an entry image, got {', '.join(given) or 'none'}")
            given = given["image"]
        height, width, channels = example["image"].shape
        return bring_images.bring_images(given, (height, width, channels), self.image_size, size, white)

    def batch_of(self, given: Any, example: Example) -> Batch:
        """Levels from 0 to 255 of any dtype, (B, H, W, C), or (B, H, W) where the model takes gray images."""
        image = jnp.asarray(given["image"] if isinstance(given, Mapping) else given)
        image = image if jnp.issubdtype(image.dtype, jnp.integer) else image.astype(jnp.float32) / 255
        return {"image": image.reshape(image.shape[0], *example["image"].shape)}

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
        """The confusion matrix and what follows from it for each class."""
        return ClassReport.of(judged["label"], judged["predicted"], facts["class_names"])

    def _standardize(self, images: jax.Array) -> jax.Array:
        # One multiply-add, which XLA fuses into the first convolution's input.
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        levels = jnp.issubdtype(images.dtype, jnp.integer)  # of any width: they mean the same
        return images.astype(jnp.float32) * (1 / (255 * std) if levels else 1 / std) - mean / std

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


def read_labels(source: Any, chunk: int = 512) -> np.ndarray:
    """The labels of all examples of a split, (n,) int64. It reads the examples whole."""
    starts = range(0, len(source), chunk)
    rows = (source.__getitems__(range(start, min(start + chunk, len(source)))) for start in starts)
    return np.array([int(example["label"]) for row in rows for example in row], np.int64)


def _as_pixels(image: np.ndarray) -> np.ndarray:
    """uint8, where the dtype or the values say what is white, or float32 as it is."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind == "f":
        return image.astype(np.float32)
    if image.dtype == np.uint16:  # a feature of 16-bit images
        return (image >> 8).astype(np.uint8)
    if image.dtype.kind not in "iu" or image.min() < 0 or image.max() > 255:
        raise UserError(
            f"image classification needs pixels from 0 to 255, or floats, not {image.dtype} {image.shape}"
        )
    return image.astype(np.uint8)
