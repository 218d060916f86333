"""Text classification: one label a text, softmax cross-entropy, accuracy, and texts that belong to no class."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Suppress

from jaxaccel.core.options import Count, NonNegative, Share, ShareBelowOne
from jaxaccel.core.packages import find_model_file
from jaxaccel.data.buckets import choose_bounds
from jaxaccel.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.batches import fit_length, stack_examples
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.classification import Classification, read_labels
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.task import READ_EXAMPLES, Apply, Batch, PyTree

LEARNED = ("wordpiece", "bpe")
"""Kinds of tokenizers that are learned of the training texts."""


@dataclasses.dataclass(frozen=True)
class TextClassification(Classification):
    """Batches hold ``token`` (B, L) int32, ``length`` (B,) int32 and ``label`` (B,) int32, -1 of what is of no class.

    The model is called with the tokens and a mask (B, L) bool, True where there is one, and gives logits (B, classes).
    """

    text: tuple[str, ...] = ("text",)
    """Parts of an example that are its text, joined by a space: title description."""
    label: str = "label"
    """Part of an example that is its class."""
    tokenizer: str = "wordpiece"
    """Cut texts into tokens by this: wordpiece or bpe, learned of the training texts; or a tokenizer.json, a vocab.txt,
    a folder with one of them, or minilm_l6, that of the installed package."""
    vocabulary: Count = 8000
    """Number of tokens to learn at most, where the tokenizer is learned."""
    lowercase: bool = True
    """Learn and read texts without capitals and accents, where the tokenizer is learned."""
    max_length: Count = 512
    """Cut texts behind so many tokens."""
    fill_to: tuple[Count, ...] = ()
    """Fill texts up to these lengths, in tokens, each of which is a program [default: six at most, by which least of
    the training batches is padding]."""
    unknown: str = ""
    """Name of the class that stands for texts of none of the others. They are not trained on: a text counts as unknown
    where no class is more probable than `threshold`."""
    threshold: Share = 0.7
    """Probability below which a text counts as unknown."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the label spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: Literal["balanced"] | tuple[NonNegative, ...] = ()
    """Weight of the examples of each class in the training loss: one number a class, or balanced, which counts the
    training labels: examples / (classes * examples of the class). Evaluation is unweighted."""
    fitted_tokenizer: Annotated[str, Suppress] = ""
    """The tokenizer, as the text of a tokenizer.json; found by `fit`."""
    fitted_bounds: Annotated[tuple[int, ...], Suppress] = ()
    """The lengths, found by `fit`."""

    def check_values(self) -> None:
        """Checks that lengths rise, and that some class has a weight."""
        super().check_values()
        if any(a >= b for a, b in itertools.pairwise(self.fill_to)):
            raise UserError(f"{option('fill_to')} must rise, got {self.fill_to}")
        if self.fill_to and self.fill_to[-1] > self.max_length:
            raise UserError(
                f"{option('fill_to')} goes up to {self.fill_to[-1]} and texts are cut at {self.max_length}: raise "
                f"{option('max_length')}"
            )

    @property
    def bounds(self) -> tuple[int, ...]:
        """Lengths to which texts are filled up."""
        return self.fitted_bounds or self.fill_to or (self.max_length,)

    @property
    def tokens(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          UserError: it is still to be learned.
        """
        if not self.fitted_tokenizer:
            raise UserError("the tokenizer is learned of the training texts: task.fit(source) does that")
        return Tokenizer(self.fitted_tokenizer)

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """``classes``, ``class_names``, ``max_length`` and, once there is a tokenizer, ``vocabulary`` and ``pad``."""
        known = dict(features.items())
        if missing := [name for name in (*self.text, self.label) if name not in known]:
            named = option("task.label" if missing[0] == self.label else "task.text")
            raise UserError(
                f"the data set has no {missing[0]!r}, it has {', '.join(known)}: say with {named} what to take"
            )
        names = getattr(known[self.label], "names", None)
        if not names:
            raise UserError(f"text classification needs labels that are numbers of classes, not {known[self.label]}")
        if self.unknown and self.unknown not in names:
            raise UserError(f"{option('task.unknown', self.unknown)} is none of the classes {shorten_names(names)}")
        classes = tuple(name for name in names if name != self.unknown)
        self.check_class_weights(len(classes))
        facts = {"classes": len(classes), "class_names": classes, "max_length": self.bounds[-1]}
        if self.fitted_tokenizer:
            facts |= {"vocabulary": self.tokens.vocabulary, "pad": self.tokens.pad}
        return facts

    def fit(self, source: Any) -> "TextClassification":
        """The task with its tokenizer, its lengths and its class weights, for which the whole split is read."""
        task = self
        if not self.fitted_tokenizer:
            tokenizer = self._find_tokenizer(source)
            task = dataclasses.replace(task, fitted_tokenizer=tokenizer.json)
        task = dataclasses.replace(task, class_numbers=task._number_classes(source.features))
        if not self.fill_to:
            lengths = task.lengths(source)
            bounds = choose_bounds(np.minimum(lengths, self.max_length))
            task = dataclasses.replace(task, fitted_bounds=tuple(min(b, self.max_length) for b in bounds))
        if isinstance(self.class_weights, str):
            names = task.facts(source.features)["class_names"]
            numbers = np.asarray(task.class_numbers)[read_labels(source, self.label)]
            task = task.fit_class_weights(numbers[numbers >= 0], names)
        return task
