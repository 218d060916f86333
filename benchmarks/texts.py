"""Texts of random tokens, as long as those of a real data set, and the models that read them.

It needs NumPy alone, so that the PyTorch process can import it where JAX is not installed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

VOCABULARY = 8000
CLASSES = 6
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
"""Of matrices and kernels, by AdamW; biases and normalization do not decay."""
DROPOUT = {"text_cnn": 0.5, "text_encoder": 0.1, "bilstm": 0.5}
ModelName = Literal["text_cnn", "text_encoder", "bilstm"]
FIRST_LENGTH = 5
QUESTIONS_BY_LENGTH = (
    3, 30, 131, 292, 419, 458, 553, 526, 476, 469, 430, 317, 246, 215, 193, 148, 120, 81, 77, 64, 35, 32, 26, 24, 19,
    19, 14, 8, 8, 0, 4, 2, 2, 4, 1, 2, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1,
)  # fmt: skip
"""How many of the 5,452 training questions of TREC have 5, 6, 7 and more tokens of WordPiece, up to 50."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model; `depth` is the number of an encoder's blocks."""

    model: ModelName
    depth: int = 4
    width: int = 128
    heads: int = 4
    features: int = 128
    """Of one direction of the LSTM."""
    windows: tuple[int, ...] = (3, 4, 5)
    filters: int = 100


class Texts(NamedTuple):
    """A batch."""

    token: np.ndarray
    """(B, L) int32, 0 where there is no token."""
    length: np.ndarray
    """(B,) int32."""
    label: np.ndarray
    """(B,) int32."""


def draw_batch(length: int, batch_size: int) -> Texts:
    """Draws texts that are filled up to `length`: of a bucket whose shorter neighbor is half as long."""
    rng = np.random.default_rng(length)
    return fill(rng, rng.integers(length // 2 + 1, length + 1, batch_size), length)


def draw_lengths(count: int) -> np.ndarray:
    """Draws (count,) lengths as TREC has them. The longest is always among them."""
    counts = np.asarray(QUESTIONS_BY_LENGTH)
    lengths = FIRST_LENGTH + np.random.default_rng(0).choice(len(counts), count, p=counts / counts.sum())
    lengths[0] = FIRST_LENGTH + len(counts) - 1
    return lengths


def draw_epoch(count: int, batch_size: int, bounds: Sequence[int]) -> list[Texts]:
    """Draws the batches of an epoch in mixed order; each holds texts of one bucket, and its last one is left out."""
    lengths, rng = draw_lengths(count), np.random.default_rng(1)
    which, batches = np.searchsorted(np.asarray(bounds), lengths), []
    for number, bound in enumerate(bounds):
        found = rng.permutation(lengths[which == number])
        for start in range(0, len(found) - batch_size + 1, batch_size):
            batches.append(fill(rng, found[start : start + batch_size], bound))
    return [batches[i] for i in rng.permutation(len(batches))]


def fill(rng: np.random.Generator, lengths: np.ndarray, length: int) -> Texts:
    """Fills texts of these lengths up to `length`."""
    tokens = rng.integers(1, VOCABULARY, (len(lengths), length), dtype=np.int32)
    tokens *= np.arange(length) < lengths[:, None]
    return Texts(tokens, lengths.astype(np.int32), rng.integers(0, CLASSES, len(lengths), dtype=np.int32))
