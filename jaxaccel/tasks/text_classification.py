"""Text classification: one label a text, softmax cross-entropy, accuracy, and texts that belong to no class."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Suppress

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.options import Count, NonNegative, Share, ShareBelowOne
from jaxaccel.core.packages import PACKAGES, find_package_file
from jaxaccel.data.buckets import choose_bounds
from jaxaccel.data.class_folders import Kind
from jaxaccel.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.batches import fit_length, stack_examples
from jaxaccel.tasks.bring_arrays import Example, Given
from jaxaccel.tasks.classification import Classification, read_labels
from jaxaccel.tasks.metrics import Mean
from jaxaccel.tasks.read_texts import TEXTS, decode_text, read_texts
from jaxaccel.tasks.reading import Input
from jaxaccel.tasks.task import READ_EXAMPLES, Apply, Batch, PyTree

LEARNED = ("wordpiece", "bpe")
"""Kinds of tokenizers that are learned of the training texts."""


@dataclasses.dataclass(frozen=True)
class TextClassification(Classification):
    """Batches hold ``token`` (B, L) int32, ``length`` (B,) int32 and ``label`` (B,) int32, -1 of what is of no class.

    The model is called with the tokens and a mask (B, L) bool, True where there is one, and gives logits (B, classes).
    """

    kind: ClassVar[Kind | None] = TEXTS
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
    fitted_unknown: Annotated[int, Suppress] = -1
    """The number of the class `unknown` in the data, found by `fit`."""

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
            raise UserError(
                f"text classification needs labels that are numbers of classes, not {known[self.label]}"
            )
        if self.unknown and self.unknown not in names:
            near = suggest_nearest(self.unknown, names)
            raise UserError(
                f"{option('task.unknown', self.unknown)} is none of the {len(names)} classes{near}"
            )
        classes = tuple(name for name in names if name != self.unknown)
        self.check_class_weights(len(classes))
        facts = {"classes": len(classes), "class_names": classes, "max_length": self.bounds[-1]}
        if self.fitted_tokenizer:
            facts |= {"vocabulary": self.tokens.vocabulary, "pad": self.tokens.pad}
        return facts

    def fit(self, source: Any) -> "TextClassification":
        """The task with its tokenizer, its lengths and its class weights, for which the whole split is read."""
        names, task = dict(source.features.items())[self.label].names, self
        if not self.fitted_tokenizer:
            task = dataclasses.replace(task, fitted_tokenizer=self._find_tokenizer(source).json)
        if self.unknown:
            task = dataclasses.replace(task, fitted_unknown=names.index(self.unknown))
        if not self.fill_to:
            lengths = np.minimum(task.lengths(source), self.max_length)
            bounds = (min(bound, self.max_length) for bound in choose_bounds(lengths))
            task = dataclasses.replace(task, fitted_bounds=tuple(bounds))
        if isinstance(self.class_weights, str):
            classes = task.facts(source.features)["class_names"]
            labels = np.array([task.number(label) for label in read_labels(source, self.label)])
            task = task.fit_class_weights(labels[labels >= 0], classes)
        return task

    def number(self, label: int) -> int:
        """The number of a class among those that are told apart, -1 of `unknown`, from that in the data."""
        if label == self.fitted_unknown:
            return -1
        return int(label) - (0 <= self.fitted_unknown < label)

    def element(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``token`` (n,) int32, ``length`` () int32 and ``label`` () int32. A text of no tokens has a filler as one."""
        tokens = self._encode([self._text_of(example)])[0]
        return _element(tokens) | {"label": np.asarray(self.number(int(example[self.label])), np.int32)}

    def lengths(self, source: Any, advance: Callable[[int], Any] = lambda n: None) -> np.ndarray:
        """(n,) int64: the tokens of each text of a split."""
        return np.array([len(tokens) for tokens in self._encode_all(source, advance)], np.int64)

    def length(self, element: Mapping[str, np.ndarray]) -> int:
        """How many tokens there are."""
        return int(element["length"])

    def pad(self, element: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        """The tokens filled up to `length`, or cut: what a tokenizer puts at the end of a text stays there."""
        tokens = element["token"]
        if len(tokens) > length:
            closing = min(_count_closing(self.tokens), length - 1)
            tokens = np.concatenate([tokens[: length - closing], tokens[len(tokens) - closing :]])
        padded = np.full(length, self.tokens.pad, np.int32)
        padded[: len(tokens)] = tokens
        cut = np.minimum(element["length"], length).astype(np.int32)
        return dict(element) | {"token": padded, "length": cut}

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
        if isinstance(given, Mapping):
            if "text" not in given:
                raise UserError(f"a batch of texts has an entry text, got {', '.join(given) or 'none'}")
            given = given["text"]
        if isinstance(given, (str, bytes)):
            return Given(self._bring([given], size), single=True)
        if not isinstance(given, Iterable):
            raise UserError(f"give a text or several, not {given!r:.60}")
        return Given(self._bring(given, size), single=False)

    def batch_of(self, given: Any, example: Example) -> Batch:
        """Tokens (B, L) int32, filled up with the tokenizer's filler; or ``{"token": ..., "length": ...}``."""
        batch = dict(given) if isinstance(given, Mapping) else {"token": given}
        token = jnp.asarray(batch["token"])
        if "length" not in batch:
            places = jnp.arange(1, token.shape[1] + 1)
            batch["length"] = jnp.maximum((places * (token != self.tokens.pad)).max(1), 1)
        return batch | {"token": token}

    def _bring(self, texts: Iterable[Any], size: int) -> Iterator[dict[str, Any]]:
        numbered = iter(enumerate(texts))
        while some := list(itertools.islice(numbered, size)):
            rows = [_element(tokens) for tokens in self._encode([_as_text(text, i) for i, text in some])]
            length = fit_length(self.bounds, max(map(self.length, rows)))
            yield stack_examples([self.pad(row, length) for row in rows])

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        filler = np.array([self.tokens.pad], np.int32)  # models need a token, also of an empty text
        return [tokens if len(tokens) else filler for tokens in self.tokens.encode(texts)]

    def _encode_all(self, source: Any, advance: Callable[[int], Any]) -> Iterator[np.ndarray]:
        for texts in self._read_texts(source):
            yield from self._encode(texts)
            advance(len(texts))

    def _read_texts(self, source: Any) -> Iterator[list[str]]:
        for start in range(0, len(source), READ_EXAMPLES):
            indices = range(start, min(start + READ_EXAMPLES, len(source)))
            yield [self._text_of(example) for example in source.__getitems__(indices)]

    def _text_of(self, example: Mapping[str, Any]) -> str:
        parts = (example[name].item() for name in self.text)
        return " ".join(
            part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts
        )

    def _find_tokenizer(self, source: Any) -> Tokenizer:
        if self.tokenizer in PACKAGES:
            return load_tokenizer(find_package_file(self.tokenizer, "tokenizer.json"))
        if self.tokenizer not in LEARNED:
            return load_tokenizer(self.tokenizer)
        texts = [text for some in self._read_texts(source) for text in some]
        kind: Any = self.tokenizer
        tokenizer = train_tokenizer(texts, kind, self.vocabulary, self.lowercase)
        logging.getLogger(__name__).info(f"learned {tokenizer.vocabulary:,} tokens of {len(texts):,} texts")
        return tokenizer


def _element(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"token": tokens, "length": np.asarray(len(tokens), np.int32)}


def _as_text(value: Any, number: int) -> str:
    """A text that somebody gave.

    Raises:
      UserError: it is none, or no UTF-8.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise UserError(f"text {number} is no UTF-8 (byte {error.start}): convert it first") from error
    if not isinstance(text, str):
        raise UserError(f"text {number} is {value!r:.60}: give texts")
    return text


@functools.lru_cache(maxsize=16)
def _count_closing(tokenizer: Tokenizer) -> int:
    """How many tokens the template puts after a text, such as ``[SEP]``."""
    added, text = tokenizer.encode(["", "a"])
    before = next((i for i, (x, y) in enumerate(zip(added, text, strict=False)) if x != y), len(added))
    return len(added) - before
