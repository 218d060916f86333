"""Tokenizers: texts as numbers of pieces of words, by Hugging Face's library and in its format."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxaccel.core.formats.bounds import check, explain_errors, read_bytes, shorten
from jaxaccel.errors import UserError

MAX_BYTES = 1 << 26
"""Of a tokenizer's file; the largest that are in use have some twenty million."""
_MAX_IDS = 1 << 24
PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
_PADS, _MASKS = (PAD, "<pad>", "<|pad|>"), (MASK, "<mask>")
_WHAT = "is no tokenizer"


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
        return _open(self.json).vocabulary

    @property
    def pad(self) -> int:
        """The id that fills batches up; 0 where the file names none."""
        return _open(self.json).pad

    @property
    def unknown(self) -> int | None:
        """The id of what the tokenizer has no piece for; None where it has pieces for everything."""
        return _open(self.json).unknown

    @property
    def mask(self) -> int | None:
        """The id that stands for a hidden piece, None where there is none."""
        return _open(self.json).mask

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 (length,), with what the template adds; other threads run meanwhile.

        Nothing is cut off or filled up. An empty text has what the template adds, which may be nothing.

        Args:
          texts: any number of them.

        Raises:
          UserError: `texts` is one text.
        """
        if isinstance(texts, (str, bytes)):
            raise UserError("encode takes a sequence of texts: put the one text into a list")
        rust = _open(self.json).rust
        valid = [_to_valid(text) for text in texts]
        try:
            encodings = rust.encode_batch_fast(valid)
        except Exception as error:  # the package raises no other kind
            raise UserError(f"the tokenizer cannot read these texts ({shorten(str(error))})") from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, without special tokens."""
        return _open(self.json).rust.decode([int(i) for i in ids], skip_special_tokens=True)

    def count_added(self) -> int:
        """How many ids the template adds to one text."""
        return _open(self.json).rust.num_special_tokens_to_add(is_pair=False)

    def __repr__(self) -> str:
        return f"Tokenizer(<{len(self.json):,} characters, sha256 {self.digest[:12]}>)"


class _Opened(NamedTuple):
    """What a process makes of a tokenizer's text."""

    rust: Any
    vocabulary: int
    pad: int
    unknown: int | None
    mask: int | None


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
def _open(text: str) -> _Opened:
    tokenizers = import_tokenizers()
    try:
        with explain_errors(Path("tokenizer.json"), _WHAT):
            value = json.loads(text)
            check(isinstance(value, dict) and isinstance(value.get("model"), dict), "no model of tokens")
            return _check(tokenizers, value, text)
    except UserError:
        raise
    except BaseException as error:  # the package raises Exception itself, and its panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"tokenizer.json is damaged or {_WHAT} ({shorten(str(error))}): get or save it again"
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
    # What its parts disagree on is found here, not in the midst of training.
    check(max(rust.encode("a").ids, default=0) < vocabulary, "a template of ids that are none")
    return _Opened(rust, vocabulary, pad, unknown, _first_id(rust, _MASKS))


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


def load_tokenizer(place: str | os.PathLike[str], *, lowercase: bool | None = None) -> Tokenizer:
    """The tokenizer in a file; nothing of it is executed.

    Args:
      place: a ``tokenizer.json``, a ``vocab.txt`` of BERT (one piece of a word a line), or a folder that holds one of
        these, the first of them if both.
      lowercase: whether a ``vocab.txt``, which does not say so, is of lower-cased text without accents; by default
        if none of its pieces has a capital letter from A to Z.

    Raises:
      UserError: it is not there, too large or damaged.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor vocab.txt")
        path = found[0]
    with explain_errors(path, _WHAT):
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    if path.suffix == ".txt":
        return _of_vocabulary(path, text, lowercase)
    try:
        _open(text)
    except UserError as error:
        if not error.message.startswith("tokenizer.json "):
            raise
        raise UserError(f"{path} {error.message.partition(' ')[2]}") from error.__cause__
    return Tokenizer(text)


def _of_vocabulary(path: Path, text: str, lowercase: bool | None) -> Tokenizer:
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    ids: dict[str, int] = {}
    for number, piece in enumerate(lines):
        if ids.setdefault(piece, number) != number:
            raise UserError(
                f"{path}, line {number + 1}: {shorten(repr(piece))} stands in line {ids[piece] + 1} already: get the "
                "file again"
            )
    if missing := [name for name in (PAD, UNKNOWN, START, END) if name not in ids]:
        raise UserError(
            f"{path} is no vocabulary of BERT: it has no line {missing[0]}; give a tokenizer.json"
        )
    if lowercase is None:
        lowercase = not any(re.search("[A-Z]", piece) for piece in ids if not piece.startswith("["))
    return make_wordpiece(ids, lowercase)


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
