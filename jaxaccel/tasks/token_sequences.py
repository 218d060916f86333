"""What tasks share whose models write tokens: one tokenizer, its begin and end, buckets by length."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from tyro.conf import Suppress

from jaxaccel.core.options import Count
from jaxaccel.data.buckets import choose_bounds
from jaxaccel.data.class_folders import Kind
from jaxaccel.data.examples import READ_EXAMPLES, read_elements
from jaxaccel.data.tokenizers import Tokenizer
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.read_texts import TEXTS
from jaxaccel.tasks.task import PyTree, Task
from jaxaccel.tasks.text_tokens import LEARNED, find_tokenizer

T = TypeVar("T", bound="TokenSequences")
LEAST_BPE = 260
"""Bytes and special tokens."""
MOST_LEARNED = 500_000
"""Examples that a tokenizer is learned of at most, taken evenly from the whole split."""


@dataclasses.dataclass(frozen=True)
class TokenSequences(Task):
    """Base of tasks whose models give logits (B, T, vocabulary) of the next token, whatever the tokens stand for."""

    logits: ClassVar[bool] = True
    own_facts: ClassVar[tuple[str, ...]] = ("vocabulary", "pad", "begin", "end", "max_length")
    kind: ClassVar[Kind | None] = TEXTS
    tokenizer: str = "bpe"
    """Cut texts into tokens by this: bpe, which gives every text back, or wordpiece, learned of the training texts; or
    a tokenizer.json, or a folder with one."""
    vocabulary: Count = 5000
    """Number of tokens to learn at most, where the tokenizer is learned."""
    lowercase: bool = False
    """Learn, read and write texts without capitals, where the tokenizer is learned."""
    max_length: Count = 256
    """Number of tokens that examples have at most: of longer ones the first are read, and training leaves out what can
    then not be learned, such as the other half of a pair."""
    fill_to: tuple[Count, ...] = ()
    """Fill examples up to these lengths, in tokens, each of which is a program [default: six at most, by which least of
    the training batches is padding]."""
    fitted_tokenizer: Annotated[str, Suppress] = ""
    """The tokenizer, as the text of a tokenizer.json; found by `fit`."""
    fitted_bounds: Annotated[tuple[int, ...], Suppress] = ()
    """The lengths, found by `fit`."""

    def check_values(self) -> None:
        """Checks that lengths rise."""
        if any(a >= b for a, b in itertools.pairwise(self.fill_to)):
            raise UserError(f"{option('fill_to')} must rise, got {self.fill_to}")
        if self.fill_to and self.fill_to[-1] > self.max_length:
            raise UserError(
                f"{option('fill_to')} goes up to {self.fill_to[-1]} and examples up to {self.max_length}: raise "
                f"{option('max_length')}"
            )
        if self.tokenizer == "bpe" and self.vocabulary < LEAST_BPE:
            raise UserError(
                f"{option('vocabulary')} must be at least {LEAST_BPE} for bpe, one for each byte, got {self.vocabulary}"
            )

    @property
    def parts(self) -> dict[str, str]:
        """{option: the part of an example that it names} of the texts that the task reads."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts."""
        return tuple(self.parts.values())

    @property
    def bounds(self) -> tuple[int, ...]:
        """Lengths to which examples are filled up."""
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

    @property
    def begin(self) -> int:
        """The token before the first one."""
        return self._special("begin")

    @property
    def end(self) -> int:
        """The token behind the last one."""
        return self._special("end")

    def facts(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """``max_length`` and, once there is a tokenizer, ``vocabulary``, ``pad``, ``begin`` and ``end``."""
        known = dict(features.items())
        for name, part in self.parts.items():
            if part not in known:
                raise UserError(
                    f"the data set has no {part!r}, it has {', '.join(known)}: say with {option(f'task.{name}')} what "
                    "to take"
                )
            if np.dtype(known[part].np_dtype) != object or getattr(known[part], "shape", ()) != ():
                raise UserError(
                    f"{part!r} holds no texts: say with {option(f'task.{name}')} what to take of {', '.join(known)}"
                )
        return {"max_length": self.bounds[-1], **self.learned_facts()}

    def learned_facts(self) -> dict[str, Any]:
        """``vocabulary``, ``pad``, ``begin`` and ``end``, once there is a tokenizer."""
        if not self.fitted_tokenizer:
            return {}
        tokens = self.tokens
        return {"vocabulary": tokens.vocabulary, "pad": tokens.pad, "begin": self.begin, "end": self.end}

    def fit(self: T, source: Any) -> T:
        """The task with its tokenizer and its lengths, for which the whole split is read."""
        task = self
        if not self.fitted_tokenizer:
            texts = self._read_texts(source)
            found = find_tokenizer(self.tokenizer, texts, self.vocabulary, self.lowercase)
            task = dataclasses.replace(task, fitted_tokenizer=found.json)
        _ = task.begin, task.end  # says what a given tokenizer lacks
        if not self.fill_to:
            lengths = task.measure_lengths(source)
            kept = lengths[lengths <= self.max_length]
            if not len(kept):
                raise UserError(
                    f"all {len(lengths):,} examples of {source.name} have more than {self.max_length} tokens: raise "
                    f"{option('task.max_length')}"
                )
            bounds = (min(bound, self.max_length) for bound in choose_bounds(kept))
            task = dataclasses.replace(task, fitted_bounds=tuple(bounds))
        return task

    def after(self: T, fitted: Mapping[str, Any]) -> T:
        """The task with the tokens of the run that weights are taken from, where it would learn its own."""
        tokenizer = fitted.get("fitted_tokenizer", "")
        return dataclasses.replace(self, fitted_tokenizer=tokenizer) if self.tokenizer in LEARNED else self

    def beside(self: T, teacher: Task) -> T:
        """The task with the tokens of the teacher: its soft targets are over these.

        Raises:
          UserError: the task has others already.
        """
        if not isinstance(teacher, TokenSequences) or not teacher.fitted_tokenizer:
            return self
        own = self.fitted_tokenizer
        if self.tokenizer not in LEARNED:
            own = find_tokenizer(self.tokenizer, (), self.vocabulary, self.lowercase).json
        if own and own != teacher.fitted_tokenizer:
            whose = "the run that weights are taken from" if self.tokenizer in LEARNED else self.tokenizer
            raise UserError(
                f"the teacher's tokens are others than those of {whose}, and its probabilities are over its own: train "
                f"without {option('init_from')}, with {option('task.tokenizer', 'bpe')}, or teach by another model"
            )
        return dataclasses.replace(self, fitted_tokenizer=teacher.fitted_tokenizer)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, (n,) int32, white space around it taken off, with the end behind them."""
        end = np.array([self.end], np.int32)
        found = self.tokens.encode([text.strip() for text in texts], template=False)
        return [np.concatenate([tokens, end]) for tokens in found]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of tokens, those below 0 left out."""
        return self.tokens.decode([int(token) for token in tokens if token >= 0]).strip()

    def measure_lengths(self, source: Any, advance: Any = lambda n: None) -> np.ndarray:
        """(n,) int64: the length of each example of a split."""
        return Task.lengths(self, source, advance)

    def check(self, outputs: PyTree, facts: Mapping[str, Any]) -> None:
        """The model must give logits for each token."""
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 3 or shape[2] != facts["vocabulary"]:
            raise UserError(
                f"the model must give logits of shape (batch, length, {facts['vocabulary']}), it gives {outputs}: let "
                "it take `vocabulary` as an argument"
            )

    def _read_texts(self, source: Any) -> Iterator[str]:
        """The texts that the tokenizer is learned of."""
        every = -(-len(source) // MOST_LEARNED)
        numbers = range(0, len(source), every)
        for start in range(0, len(numbers), READ_EXAMPLES):
            for example in source.__getitems__(numbers[start : start + READ_EXAMPLES]):
                yield from (text_of(example, part) for part in self.parts.values())

    def _special(self, name: str) -> int:
        found = getattr(self.tokens, name)
        if found is None:
            raise UserError(
                f"{option('task.tokenizer', self.tokenizer)} has no token for the {name} of a text, such as [CLS] and "
                "[SEP] or <s> and </s>: give another, or learn one with bpe"
            )
        return found


def text_of(example: Mapping[str, Any], part: str) -> str:
    """A part of an example as a text, without white space around it."""
    value = np.asarray(example[part]).item()
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()


def fill_row(tokens: np.ndarray, length: int, pad: int) -> np.ndarray:
    """(length,) int32: the tokens filled up, or cut before the last, which ends them."""
    if len(tokens) > length:
        tokens = np.concatenate([tokens[: length - 1], tokens[-1:]])
    row = np.full(length, pad, np.int32)
    row[: len(tokens)] = tokens
    return row


def read_lengths(source: Any, task: Task, names: Sequence[str], advance: Any) -> dict[str, np.ndarray]:
    """{name: (n,) int64} of the single numbers that a task's elements have by these names."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for start in range(0, len(source), READ_EXAMPLES):
        indices = range(start, min(start + READ_EXAMPLES, len(source)))
        for row in read_elements(source, task.element, indices):
            for name in names:
                found[name].append(int(row[name]))
        advance(len(indices))
    return {name: np.array(values, np.int64) for name, values in found.items()}
