"""Image classification: one label an image, softmax cross-entropy, accuracy."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.options import CountOrZero, NonNegative, Positive, ShareBelowOne, checked
from jaxaccel.data.class_folders import Kind
from jaxaccel.data.image_files import IMAGES
from jaxaccel.errors import UserError, option
from jaxaccel.tasks import bring_images
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.classification import Classification, read_labels
from jaxaccel.tasks.reading import Input
from jaxaccel.tasks.task import Apply, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class ImageClassification(Classification):
    """Batches hold ``image`` (B, H, W, C) uint8 and ``label`` (B,) int32; the model gives logits (B, classes)."""

    kind: ClassVar[Kind | None] = IMAGES
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
        self.check_class_weights(label.num_classes)
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
        return self.fit_class_weights(
            read_labels(source), tuple(dict(source.features.items())["label"].names)
        )

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``image`` (H, W, C), uint8 or float32 from 0 to 1, and ``label`` () int32."""
        image = _as_pixels(np.asarray(example["image"]))
        if self.image_size and image.shape[:2] != (self.image_size,) * 2:
            image = bring_images.resize(image, self.image_size)
        return {"image": image, "label": np.asarray(example["label"], np.int32)}

    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """The images as standardized float32: integers are levels from 0 to 255, floats lie in [0, 1]."""
        return (self._standardize(batch["image"]),)

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

    def read(self, path: Path) -> Iterator[Input]:
        """The picture in the file."""
        yield Input(str(path), path)

    def show(self, example: Mapping[str, Any]) -> np.ndarray:
        """The picture, as the model sees it."""
        return self.element(example)["image"]

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

    def _standardize(self, images: jax.Array) -> jax.Array:
        # One multiply-add, which XLA fuses into the first convolution's input.
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        levels = jnp.issubdtype(images.dtype, jnp.integer)  # of any width: they mean the same
        return images.astype(jnp.float32) * (1 / (255 * std) if levels else 1 / std) - mean / std


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
