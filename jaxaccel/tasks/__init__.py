"""Tasks: what a batch is, its loss, predictions and metrics."""

from jaxaccel.tasks.image_classification import ImageClassification
from jaxaccel.tasks.task import Task

__all__ = ["ImageClassification", "Task"]
