"""Classification of sounds: one label a sound, such as a word or an event."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxaccel.core.options import NonNegative, ShareBelowOne
from jaxaccel.data.examples import read_column
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.classification import Classification
from jaxaccel.tasks.sounds import Sounds


@dataclasses.dataclass(frozen=True)
class AudioClassification(Classification, Sounds):
    """Batches hold ``label`` (B,) int32 besides the sounds; the model gives logits (B, classes)."""

    label: str = "label"
    """Part of an example that is its class."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the label spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: Literal["balanced"] | tuple[NonNegative, ...] = ()
    """Weight of the examples of each class in the training loss: one number a class, or balanced, which counts the
    training labels: examples / (classes * examples of the class). Evaluation is unweighted."""

    def check_values(self) -> None:
        """Checks lengths and class weights."""
        Classification.check_values(self)
        Sounds.check_values(self)

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """``channels``, ``classes`` and ``class_names``."""
        facts = super().facts(features)
        known = dict(features.items())
        names = getattr(known.get(self.label), "names", None)
        if not names:
            raise UserError(
                f"classification needs labels with names, and {self.label!r} is {known.get(self.label, 'not there')}; "
                f"say with {option('task.label')} what to take of {', '.join(known)}"
            )
        self.check_class_weights(len(names))
        return facts | {"classes": len(names), "class_names": tuple(names)}

    def fit(self, source: Any) -> "AudioClassification":
        """The task with its lengths, its statistics and its class weights, for which the whole split is read."""
        task = super().fit(source)
        if isinstance(self.class_weights, str):
            labels = np.array([int(label) for label in read_column(source, self.label)])
            task = task.fit_class_weights(labels, self.facts(source.features)["class_names"])
        return task

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``audio`` and ``samples`` as of `Sounds`, and ``label`` () int32."""
        return {**self.sound_element(example), "label": np.asarray(example[self.label], np.int32)}

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """The sound filled up to `length` frames, or cut there."""
        return self.pad_sound(element, length)
