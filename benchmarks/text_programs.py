"""Classifiers of texts as jaxaccel trains and runs them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.task_programs import Batch, TaskModel, make_batch
from benchmarks.texts import CLASSES, DROPOUT, LEARNING_RATE, VOCABULARY, WEIGHT_DECAY, Sizes, Texts
from jaxaccel import models
from jaxaccel.optim import Optimizer
from jaxaccel.tasks import TextClassification


def make_text_model(sizes: Sizes, texts: Texts) -> TaskModel:
    """Makes a classifier of texts as long as these."""
    length = texts.token.shape[1]
    facts = {"vocabulary": VOCABULARY, "classes": CLASSES, "max_length": length}
    optimizer = Optimizer("adamw", LEARNING_RATE, {}, WEIGHT_DECAY)
    task = TextClassification(fill_to=(length,))
    return TaskModel(task, make_factory(sizes), facts, optimizer, as_batch(texts))


def make_factory(sizes: Sizes) -> Callable[..., Any]:
    """Makes the factory of a model of these sizes."""
    dropout = DROPOUT[sizes.model]
    if sizes.model == "text_cnn":
        return partial(
            models.TextCnn,
            width=sizes.width,
            windows=sizes.windows,
            filters=sizes.filters,
            dropout=dropout,
        )
    if sizes.model == "bilstm":
        return partial(models.BiLstm, width=sizes.width, features=sizes.features, dropout=dropout)
    return partial(
        models.TextEncoder, width=sizes.width, depth=sizes.depth, heads=sizes.heads, dropout=dropout
    )


def as_batch(texts: Texts) -> Batch:
    """Makes a batch as the trainer has it, on the device."""
    return make_batch(texts._asdict())
