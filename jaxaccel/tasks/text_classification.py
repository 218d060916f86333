"""Text classification: one label a text, softmax cross-entropy, accuracy, and texts that belong to no class."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from tyro.conf import Suppress

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.options import Count, NonNegative, Share, ShareBelowOne
from jaxaccel.data.augment.mix import neighbor
from jaxaccel.data.buckets import choose_bounds
from jaxaccel.data.class_folders import Kind
from jaxaccel.data.examples import READ_EXAMPLES
from jaxaccel.data.tokenizers import Tokenizer
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.bring_texts import bring_texts, to_element
from jaxaccel.tasks.classification import Classification
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.read_texts import TEXTS, decode_text, read_texts
from jaxaccel.tasks.reading import Input
from jaxaccel.tasks.task import Apply, Batch, PyTree, Task
from jaxaccel.tasks.text_tokens import LEARNED, encode_texts, fill_tokens, find_tokenizer


@dataclasses.dataclass(frozen=True)
class TextClassification(Classification):
    """Batches hold ``token`` (B, L) int32, ``length`` (B,) int32 and ``label`` (B,) int32, -1 of what is of no class.

    The model is called with the tokens and a mask (B, L) bool, True where there is one, and gives logits (B, classes).
    """

    own_facts: ClassVar[tuple[str, ...]] = ("vocabulary", "pad", "max_length")
    kind: ClassVar[Kind | None] = TEXTS
    text: tuple[str, ...] = ("text",)
    """Parts of an example that are its text, joined by a space: title description."""
    label: str = "label"
    """Part of an example that is its class: a number of the data's classes, or the name of one."""
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
    teacher_tokenizer: Annotated[str, Suppress] = ""
    """The tokenizer of a model that is learned from, where it is another one; found by `beside`."""
    fitted_bounds: Annotated[tuple[int, ...], Suppress] = ()
    """The lengths, found by `fit`."""
    fitted_classes: Annotated[tuple[str, ...], Suppress] = ()
    """Names of the classes but for `unknown`, found by `fit` where labels are names."""
    fitted_unknown: Annotated[int, Ge(-1), Suppress] = -1
    """The number of `unknown` in the data, found by `fit` where labels are numbers; -1 where there is none."""

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
        names = getattr(known[self.label], "names", None) or self.fitted_classes
        if not names and np.dtype(known[self.label].np_dtype) != object:
            raise UserError(
                f"text classification needs labels that are names, or numbers of named classes, and {self.label} is "
                f"{known[self.label]}: say with {option('task.label')} what to take"
            )
        classes = tuple(name for name in names if name != self.unknown)
        if classes:
            self.check_class_weights(len(classes))
        facts = {"classes": len(classes), "class_names": classes, "max_length": self.bounds[-1]}
        return facts | self.learned_facts()

    def learned_facts(self) -> dict[str, Any]:
        """``vocabulary`` and ``pad``, once there is a tokenizer."""
        return {"vocabulary": self.tokens.vocabulary, "pad": self.tokens.pad} if self.fitted_tokenizer else {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts and the label."""
        return (*self.text, self.label)

    def fit(self, source: Any) -> "TextClassification":
        """The task with its tokenizer, its lengths and its class weights, for which the whole split is read."""
        task = self._fit_classes(source)
        if not self.fitted_tokenizer:
            texts = map(self._text_of, _read(source))
            found = find_tokenizer(self.tokenizer, texts, self.vocabulary, self.lowercase)
            task = dataclasses.replace(task, fitted_tokenizer=found.json)
        if not self.fill_to:
            lengths = np.minimum(task.lengths(source), self.max_length)
            bounds = (min(bound, self.max_length) for bound in choose_bounds(lengths))
            task = dataclasses.replace(task, fitted_bounds=tuple(bounds))
        if isinstance(self.class_weights, str):
            classes = task.facts(source.features)["class_names"]
            labels = np.array([task.number(example[self.label]) for example in _read(source)])
            task = task.fit_class_weights(labels[labels >= 0], classes)
        return task

    def number(self, label: Any) -> int:
        """The number of a class among those that are told apart, -1 of `unknown`.

        Args:
          label: its name, or its number in the data.

        Raises:
          UserError: the training split had no such class.
        """
        value = np.asarray(label).item()
        if isinstance(value, int):
            return -1 if value == self.fitted_unknown else value - (0 <= self.fitted_unknown < value)
        name = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        if name == self.unknown:
            return -1
        if name not in self.fitted_classes:
            near = suggest_nearest(name, list(self.fitted_classes))
            raise UserError(
                f"{name!r:.60} is none of the training split's {len(self.fitted_classes)} classes{near}"
            )
        return self.fitted_classes.index(name)

    def after(self, fitted: Mapping[str, Any]) -> "TextClassification":
        """The task with the tokens of the run that weights are taken from, where it would learn its own."""
        tokenizer = fitted.get("fitted_tokenizer", "")
        return dataclasses.replace(self, fitted_tokenizer=tokenizer) if self.tokenizer in LEARNED else self

    def beside(self, teacher: Task) -> "TextClassification":
        """The task whose batches also hold ``teacher_token`` and ``teacher_length``, where the tokens are others."""
        if not isinstance(teacher, TextClassification) or not teacher.fitted_tokenizer:
            return self
        return dataclasses.replace(self, teacher_tokenizer=teacher.fitted_tokenizer)

    def teacher_batch(self, batch: Batch) -> Batch:
        """The same texts in the teacher's tokens, mixed as they are."""
        if "teacher_token" not in batch:
            return batch
        theirs = {"token": batch["teacher_token"], "length": batch["teacher_length"]}
        if "mix_token" in batch:
            theirs |= {f"mix_{name}": neighbor(x) for name, x in theirs.items()}
        return {**batch, **theirs}

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``token`` (n,) int32, ``length`` () int32 and ``label`` () int32. A text of no tokens has a filler as one."""
        text = self._text_of(example)
        theirs = (
            to_element(encode_texts(Tokenizer(self.teacher_tokenizer), [text])[0])
            if self.teacher_tokenizer
            else {}
        )
        return {
            **to_element(encode_texts(self.tokens, [text])[0]),
            "label": np.asarray(self.number(example[self.label]), np.int32),
            **{f"teacher_{name}": x for name, x in theirs.items()},
        }

    def length(self, element: Mapping[str, np.ndarray]) -> int:
        """How many tokens there are, of the teacher's where these are more."""
        return max(int(element["length"]), int(element.get("teacher_length", 0)))

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """The tokens filled up to `length`, or cut: what a tokenizer puts at the end of a text stays there."""
        own = ("", self.fitted_tokenizer)
        theirs = [("teacher_", self.teacher_tokenizer)] if "teacher_token" in element else []
        filled = dict(element)
        for prefix, tokenizer in (own, *theirs):
            filled[f"{prefix}token"] = fill_tokens(element[f"{prefix}token"], length, Tokenizer(tokenizer))
            filled[f"{prefix}length"] = np.minimum(element[f"{prefix}length"], length).astype(np.int32)
        return filled

    def inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """Tokens, mask and, where `augment.mix_embeddings` chose a partner, ``(tokens, mask, weight)`` of that."""
        places = jnp.arange(batch["token"].shape[1])
        own = (batch["token"], places < batch["length"][:, None])
        if "mix_token" not in batch:
            return own
        return (*own, (batch["mix_token"], places < batch["mix_length"][:, None], batch["mix_weight"]))

    def weights(self, batch: Batch) -> jax.Array:
        """The mask, 0 for texts of no class."""
        return batch["mask"] * (batch["label"] >= 0)

    def evaluate(self, apply: Apply, batch: Batch) -> Mapping[str, Mean | jax.Array]:
        """``accuracy`` and ``loss`` of texts that have a class.

        With `unknown` also ``unknown_recall``, the share of the texts of no class that count as unknown, and ``kept``,
        the share of the others that do not.
        """
        logits = self.predict(apply, batch)
        found = dict(super().evaluate(lambda *_: logits, batch))
        if self.unknown:
            sure = jax.nn.softmax(logits.astype(jnp.float32)).max(-1) >= self.threshold
            known = self.weights(batch)
            found["kept"] = Mean.of(sure, known)
            found["unknown_recall"] = Mean.of(~sure, batch["mask"] - known)
        return found

    def describe(
        self, given: Any, prediction: PyTree, facts: Mapping[str, Any], *, top: int
    ) -> dict[str, Any]:
        """``text``, ``label`` and ``scores``.

        With `unknown` also ``known``: whether a class is as probable as `threshold`; where none is, the label is
        `unknown`.
        """
        found = {"text": given} | super().describe(given, prediction, facts, top=top)
        if self.unknown:
            found["known"] = self.guess(prediction, facts, 1)[0].probability >= self.threshold
            found["label"] = found["label"] if found["known"] else self.unknown
        return found

    def relabel(self, example: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
        """The text with its class by the model."""
        return {**self._texts_of(example), self.label: described["label"]}

    def read(self, path: Path) -> Iterator[Input]:
        """Each line of a file of text, or each row of a csv, tsv or jsonl that has the columns `text`."""
        yield from read_texts(path, self.text)

    def read_line(self, line: bytes, name: str) -> Iterator[Input]:
        """The line as a text."""
        yield decode_text(line, name)

    def read_text(self, text: str, name: str) -> Input:
        """The text."""
        return Input(name, text)

    def bring(self, given: Any, example: Example, size: int) -> Given:
        """Texts, as batches of up to `size`, each as long as its longest text needs.

        Args:
          given: a text, an iterable of texts, or ``{"text": ...}`` of one of these.
          example: shape and dtype of each array of one example.
          size: texts in a batch at most.

        Raises:
          UserError: it is no text.
        """
        return bring_texts(given, size, functools.partial(encode_texts, self.tokens), self.pad, self.bounds)

    def show(self, example: Mapping[str, Any]) -> str:
        """The text."""
        return self._text_of(example)

    def batch_of(self, given: Any, example: Example) -> Batch:
        """Tokens (B, L) int32, filled up with the tokenizer's filler; or ``{"token": ..., "length": ...}``."""
        batch = dict(given) if isinstance(given, Mapping) else {"token": given}
        token = jnp.asarray(batch["token"])
        if "length" not in batch:
            places = jnp.arange(1, token.shape[1] + 1)
            batch["length"] = jnp.maximum((places * (token != self.tokens.pad)).max(1), 1)
        return batch | {"token": token}

    def _texts_of(self, example: Mapping[str, Any]) -> dict[str, str]:
        parts = {name: example[name].item() for name in self.text}
        return {
            name: part.decode(errors="replace") if isinstance(part, bytes) else str(part)
            for name, part in parts.items()
        }

    def _text_of(self, example: Mapping[str, Any]) -> str:
        return " ".join(self._texts_of(example).values())

    def _fit_classes(self, source: Any) -> "TextClassification":
        names = getattr(dict(source.features.items())[self.label], "names", None)
        if self.fitted_classes:
            return self
        if not names:
            found = {
                np.asarray(example[self.label]).item().decode(errors="replace") for example in _read(source)
            }
            return dataclasses.replace(self, fitted_classes=tuple(sorted(found - {self.unknown})))
        if self.unknown and self.unknown not in names:
            near = suggest_nearest(self.unknown, names)
            raise UserError(
                f"{option('task.unknown', self.unknown)} is none of the {len(names)} classes{near}"
            )
        return dataclasses.replace(self, fitted_unknown=names.index(self.unknown)) if self.unknown else self


def _read(source: Any) -> Iterator[Mapping[str, Any]]:
    """The examples of a split, read in parts."""
    for start in range(0, len(source), READ_EXAMPLES):
        yield from source.__getitems__(range(start, min(start + READ_EXAMPLES, len(source))))
