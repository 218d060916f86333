"""The tokenizer, and how a process opens it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxaccel.core.formats.bounds import check, explain_errors, shorten
from jaxaccel.errors import UserError

_MAX_IDS = 1 << 24
_MAX_GROWTH = 1 << 10  # times the characters of a text that its normalization may make; a few in use
PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
_PADS, _MASKS = (PAD, "<pad>", "<|pad|>"), (MASK, "<mask>")
_BEGINS = (START, "<s>", "<bos>", "<|startoftext|>")
_ENDS = (END, "</s>", "<eos>", "<|endoftext|>")
WHAT = "is no tokenizer"
"""What a damaged file may be besides."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, as the text of a ``tokenizer.json``; it is cheap to pickle, and opened once in each process.

    The padding and truncation that a file asks for are switched off, and a text cannot write special tokens: ``[SEP]``
    in it is read as five characters.

    Args:
      json: the whole file, in the format of Hugging Face's ``tokenizers``.

    Raises:
      UserError: by everything that opens it: it is damaged, or the package ``tokenizers`` is missing.
    """

    json: str

    @property
    def vocabulary(self) -> int:
        """Number of ids: the rows that an embedding needs."""
        return open_text(self.json).vocabulary

    @property
    def pad(self) -> int:
        """The id that fills batches up; 0 where the file names none."""
        return open_text(self.json).pad

    @property
    def unknown(self) -> int | None:
        """The id of what the tokenizer has no piece for; None where it has pieces for everything."""
        return open_text(self.json).unknown

    @property
    def mask(self) -> int | None:
        """The id that stands for a hidden piece, None where there is none."""
        return open_text(self.json).mask

    @property
    def begin(self) -> int | None:
        """The id before the first piece of a text, None where there is none."""
        return open_text(self.json).begin

    @property
    def end(self) -> int | None:
        """The id that ends a text, None where there is none."""
        return open_text(self.json).end

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def encode(self, texts: Sequence[str], *, template: bool = True) -> list[np.ndarray]:
        """The ids of each text, int32 (length,), with what the template adds; other threads run meanwhile.

        Nothing is cut off or filled up. An empty text has what the template adds, which may be nothing.

        Args:
          texts: any number of them.
          template: whether to add what the template adds, such as the begin and the end.

        Raises:
          UserError: `texts` is one text.
        """
        if isinstance(texts, (str, bytes)):
            raise UserError("encode takes a sequence of texts: put the one text into a list")
        rust = open_text(self.json).rust
        valid = [_to_valid(text) for text in texts]
        try:
            encodings = rust.encode_batch_fast(valid, add_special_tokens=template)
        except Exception as error:  # the package raises no other kind
            raise UserError(f"the tokenizer cannot read these texts ({shorten(str(error))})") from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, without special tokens."""
        return open_text(self.json).rust.decode([int(i) for i in ids], skip_special_tokens=True)

    def count_added(self) -> int:
        """How many ids the template adds to one text."""
        return open_text(self.json).rust.num_special_tokens_to_add(is_pair=False)

    def __repr__(self) -> str:
        return f"Tokenizer(<{len(self.json):,} characters, sha256 {self.digest[:12]}>)"


class _Opened(NamedTuple):
    """What a process makes of a tokenizer's text."""

    rust: Any
    vocabulary: int
    pad: int
    unknown: int | None
    mask: int | None
    begin: int | None
    end: int | None


def import_tokenizers() -> ModuleType:
    """The package ``tokenizers``, told to start no threads: a process that forks after that would be warned of them.

    Raises:
      UserError: it is not installed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("tokens of text need the package tokenizers: pip install 'jaxaccel[text]'") from error
    return tokenizers


@functools.lru_cache(maxsize=16)
def open_text(text: str) -> _Opened:
    """The tokenizer of a ``tokenizer.json``, opened once in a process.

    Raises:
      UserError: it is damaged, which the message says of ``tokenizer.json``.
    """
    tokenizers = import_tokenizers()
    try:
        with explain_errors(Path("tokenizer.json"), WHAT):
            value = json.loads(text)
            check(isinstance(value, dict) and isinstance(value.get("model"), dict), "no model of tokens")
            return _check(tokenizers, value, text)
    except UserError:
        raise
    except BaseException as error:  # the package raises Exception itself, and its panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"tokenizer.json is damaged or {WHAT} ({shorten(str(error))}): get or save it again"
        ) from error


def _check(tokenizers: Any, value: dict[str, Any], text: str) -> _Opened:
    rust = tokenizers.Tokenizer.from_str(text)
    padding = rust.padding or {}
    rust.no_padding()
    rust.no_truncation()
    rust.encode_special_tokens = True
    ids = rust.get_vocab(with_added_tokens=True).values()
    vocabulary = max(ids, default=-1) + 1
    check(0 < vocabulary <= _MAX_IDS, f"ids up to {vocabulary - 1}")
    pad = padding.get("pad_id", _first_id(rust, _PADS) or 0)
    check(0 <= pad < vocabulary, f"{pad} to pad with, of {vocabulary} ids")
    model = value["model"]
    unknown = model.get("unk_id")
    if (name := model.get("unk_token")) is not None:
        unknown = rust.token_to_id(name)
        check(unknown is not None, f"no id for {name!r:.40}, which it calls unknown")
    check(unknown is None or 0 <= unknown < vocabulary, "an unknown that is no id")
    growth = math.prod(_growths(value.get("normalizer")))
    check(growth <= _MAX_GROWTH, f"a normalization that makes {growth:.3g} characters of one")
    # What its parts disagree on is found here, not in the midst of training.
    check(max(rust.encode("a").ids, default=0) < vocabulary, "a template of ids that are none")
    return _Opened(rust, vocabulary, pad, unknown, *(_first_id(rust, x) for x in (_MASKS, _BEGINS, _ENDS)))


def _growths(normalizer: Any) -> Iterator[int]:
    """How many characters each step of a normalization may make of one: in a sequence these multiply."""
    if not isinstance(normalizer, dict):
        return
    yield max(1, len(str(normalizer.get("content", ""))))
    for inner in normalizer.get("normalizers") or ():
        yield from _growths(inner)


def _first_id(rust: Any, names: Sequence[str]) -> int | None:
    return next((found for name in names if (found := rust.token_to_id(name)) is not None), None)


def _to_valid(text: Any) -> str:
    """`text` with a replacement character for each half of a surrogate pair, which no UTF-8 can hold."""
    if not isinstance(text, str):
        raise UserError(f"encode takes texts, and one of them is {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def make_wordpiece(ids: dict[str, int], lowercase: bool) -> Tokenizer:
    """The tokenizer of BERT with these pieces of words.

    Args:
      ids: {piece: its id}, with the special tokens; what goes on inside a word begins with ``##``.
      lowercase: whether texts are lower-cased, and accents taken off.
    """
    tokenizers = import_tokenizers()
    rust = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=UNKNOWN))
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    rust.decoder = tokenizers.decoders.WordPiece()
    return finish(rust, (PAD, UNKNOWN, START, END, MASK))


def finish(rust: Any, special: Sequence[str]) -> Tokenizer:
    """`rust` with its special tokens and the template ``[CLS] text [SEP]``."""
    tokenizers = import_tokenizers()
    rust.add_special_tokens([name for name in special if rust.token_to_id(name) is not None])
    ends = [(name, rust.token_to_id(name)) for name in (START, END)]
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START} $A {END}", pair=f"{START} $A {END} $B:1 {END}:1", special_tokens=ends
    )
    return Tokenizer(rust.to_str(pretty=False))
