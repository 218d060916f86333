"""The tokens of texts: where a tokenizer comes from, and how its tokens are filled up or cut."""

import functools
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from jaxaccel.core.packages import PACKAGES, find_package_file
from jaxaccel.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

LEARNED = ("wordpiece", "bpe")
"""Kinds of tokenizers that are learned of the training texts."""


def find_tokenizer(name: str, texts: Iterable[str], size: int, lowercase: bool) -> Tokenizer:
    """Finds a tokenizer, or learns it.

    Args:
      name: one of `LEARNED`, a published model whose package is installed (`PACKAGES`), or a place of
        `load_tokenizer`.
      texts: of which it is learned.
      size: number of tokens to learn at most.
      lowercase: whether to learn and read texts without capitals and accents.

    Raises:
      UserError: there is no such tokenizer, or the texts are none.
    """
    if name in PACKAGES:
        return load_tokenizer(find_package_file(name, "tokenizer.json"))
    if name not in LEARNED:
        return load_tokenizer(name)
    kind, given = name, list(texts)
    tokenizer = train_tokenizer(given, kind, size, lowercase)  # pyright: ignore[reportArgumentType]
    logging.getLogger(__name__).info(f"learned {tokenizer.vocabulary:,} tokens of {len(given):,} texts")
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each text, (n,) int32; of a text that has none, one filler."""
    filler = np.array([tokenizer.pad], np.int32)  # models need a token, also of an empty text
    return [tokens if len(tokens) else filler for tokens in tokenizer.encode(texts)]


def fill_tokens(tokens: np.ndarray, length: int, tokenizer: Tokenizer) -> np.ndarray:
    """(length,) int32: the tokens filled up, or cut before those that close a text."""
    if len(tokens) > length:
        closing = min(count_closing(tokenizer), length - 1)
        tokens = np.concatenate([tokens[: length - closing], tokens[len(tokens) - closing :]])
    padded = np.full(length, tokenizer.pad, np.int32)
    padded[: len(tokens)] = tokens
    return padded


@functools.lru_cache(maxsize=16)
def count_closing(tokenizer: Tokenizer) -> int:
    """How many tokens the template puts after a text, such as ``[SEP]``."""
    added, text = tokenizer.encode(["", "a"])
    before = next((i for i, (x, y) in enumerate(zip(added, text, strict=False)) if x != y), len(added))
    return len(added) - before
