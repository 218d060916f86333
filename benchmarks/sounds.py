"""Sounds of random noise and transcripts of random symbols, and the models that hear them.

It needs NumPy alone, so that the PyTorch process can import it where JAX is not installed.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

RATE = 8000
"""Samples a second."""
BANDS = 40
HOP_MS = 10
"""From one frame to the next."""
SYMBOLS = 28
"""Letters, space and apostrophe."""
SYMBOLS_PER_SECOND = 12
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3
"""Of matrices and kernels, by AdamW; biases and normalization do not decay."""
CLIP_NORM = 1.0
DROPOUT = 0.1
ModelName = Literal["lstm_ctc", "conformer_ctc"]
SUBSAMPLING: dict[ModelName, Literal[1, 2, 4]] = {"lstm_ctc": 2, "conformer_ctc": 4}
"""Frames of an output."""
DEPTH: dict[ModelName, int] = {"lstm_ctc": 2, "conformer_ctc": 4}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model; `depth` is the number of layers or blocks."""

    model: ModelName
    depth: int
    width: int
    """Of the LSTMs' inputs, or of a frame in the Conformer."""
    features: int = 128
    """Of one direction of an LSTM."""
    both: bool = True
    """Whether LSTMs go in both directions."""
    heads: int = 4
    window: int = 31
    filters: int = 32


class Sounds(NamedTuple):
    """A batch."""

    audio: np.ndarray
    """(B, N) int16, 0 behind the end of a sound."""
    samples: np.ndarray
    """(B,) int32."""
    label: np.ndarray
    """(B, L) int32, from 1 on, 0 where there is no symbol."""
    labels: np.ndarray
    """(B,) int32."""


def draw_sounds(seconds: int, batch_size: int) -> Sounds:
    """Draws sounds that are filled up to `seconds`, of more than half of it; the first one is as long."""
    rng = np.random.default_rng(seconds)
    length = seconds * RATE
    samples = rng.integers(length // 2 + 1, length + 1, batch_size)
    samples[0] = length
    # Words are a few a second: the noise is louder and softer as often.
    times = np.arange(length) / RATE
    loudness = 1000 * (1.1 + np.sin(2 * np.pi * rng.uniform(2, 5, (batch_size, 1)) * times))
    audio = rng.standard_normal((batch_size, length)) * loudness * (np.arange(length) < samples[:, None])
    labels = np.maximum(samples * SYMBOLS_PER_SECOND // RATE, 1)
    label = rng.integers(1, SYMBOLS + 1, (batch_size, labels.max()))
    label *= np.arange(label.shape[1]) < labels[:, None]
    return Sounds(audio.astype(np.int16), *(x.astype(np.int32) for x in (samples, label, labels)))
