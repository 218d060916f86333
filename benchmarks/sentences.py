"""Pairs of random sentences, and the Transformer that translates them, in the sizes of the recipe multi30k_en_de.

It needs NumPy alone, so that the PyTorch process can import it where JAX is not installed.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

VOCABULARY = 5000
PAD, BEGIN, END = 0, 1, 2
"""Tokens that stand for no part of a text, as the recipe's tokenizer numbers them."""
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
"""Of matrices and of the table of tokens, by AdamW; biases and normalization do not decay."""
CLIP_NORM = 1.0
DROPOUT = 0.3
LABEL_SMOOTHING = 0.1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model; `depth` is the number of blocks of the encoder, and of those of the decoder."""

    model: Literal["translator_tiny"] = "translator_tiny"
    depth: int = 4
    width: int = 128
    heads: int = 4
    hidden: int = 256


class Pairs(NamedTuple):
    """A batch."""

    source: np.ndarray
    """(B, L) int32, which ends with `END`, and is filled up with `PAD`."""
    source_length: np.ndarray
    """(B,) int32."""
    target: np.ndarray
    """(B, L) int32."""
    target_length: np.ndarray
    """(B,) int32."""


def draw_pairs(length: int, batch_size: int) -> Pairs:
    """Draws pairs that are filled up to `length`, of more than three quarters of it: an eighth is padding.

    So it is in the recipe's buckets.
    """
    rng = np.random.default_rng(length)
    return Pairs(*draw_sentences(rng, length, batch_size), *draw_sentences(rng, length, batch_size))


def draw_sentences(rng: np.random.Generator, length: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the sentences of one language, and their lengths."""
    lengths = rng.integers(3 * length // 4 + 1, length + 1, batch_size)
    tokens = rng.integers(END + 1, VOCABULARY, (batch_size, length))
    places = np.arange(length)
    tokens = np.where(places < lengths[:, None] - 1, tokens, PAD)
    tokens[np.arange(batch_size), lengths - 1] = END
    return tokens.astype(np.int32), lengths.astype(np.int32)
