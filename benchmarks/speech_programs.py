"""Recognizers of speech as jaxaccel trains and runs them, from log-mel features that were computed before."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.sounds import (
    BANDS,
    CLIP_NORM,
    DROPOUT,
    HOP_MS,
    LEARNING_RATE,
    RATE,
    SUBSAMPLING,
    SYMBOLS,
    WEIGHT_DECAY,
    Sizes,
    Sounds,
    draw_sounds,
)
from benchmarks.task_programs import TaskModel, choose_forms, make_batch, save_arrays
from jaxaccel import models
from jaxaccel.optim import Optimizer
from jaxaccel.tasks import SpeechRecognition

CHUNKS = 8
"""Different chunks of a stream, which begins anew behind them."""


class Recognition(SpeechRecognition):
    """Speech recognition of batches that hold features instead of samples."""

    def features(self, batch: Any) -> Any:
        """Returns the batch as it is."""
        return batch


class Stream:
    """A model of one direction that hears a stream of features, a chunk at a time.

    Args:
      sizes: of the model.
      chunk_ms: milliseconds of a chunk.
    """

    def __init__(self, sizes: Sizes, chunk_ms: int) -> None:
        frames = chunk_ms // HOP_MS
        sounds = draw_sounds(-(-CHUNKS * chunk_ms // 1000), 1)
        self._model = make_speech_model(sizes, sounds)
        feature = np.asarray(self._model.batch["feature"])[0, : CHUNKS * frames]
        self.chunks = feature.reshape(CHUNKS, frames, BANDS)

    def save(self, file: Path) -> None:
        """Saves the weights for the other process, by path, and the chunks."""
        save_arrays(file, self._model.params, {"batch/feature": self.chunks})

    def check(self) -> dict[str, np.ndarray]:
        """Computes the logits of the last chunk, after all others."""
        with jax.default_matmul_precision("highest"):
            listen = self.make_listening(True)
            return {"logits": [listen() for _ in self.chunks][-1][0]}

    def make_listening(self, retargeted: bool) -> Callable[[], np.ndarray]:
        """Makes what computes the logits of the next chunk; chunks come from the host, logits go there."""
        training = choose_forms(self._model.training, retargeted)
        params = jax.device_put(self._model.params)
        bound = training.bind(params, self._model.model_state)
        carry = jax.device_put(bound.start(1))

        def step(params: Any, chunk: Any, carry: Any) -> Any:
            return training.bind(params, self._model.model_state).step(chunk, carry)

        call = jax.jit(training.lowered(step)).lower(params, self.chunks[:1], carry).compile()
        box = [0, carry]

        def listen() -> np.ndarray:
            number = box[0] % CHUNKS
            logits, box[1] = call(params, self.chunks[number : number + 1], box[1])
            box[0] += 1
            return np.asarray(logits)

        return listen


def make_speech_model(sizes: Sizes, sounds: Sounds) -> TaskModel:
    """Makes a recognizer of these sounds."""
    subsampling = SUBSAMPLING[sizes.model]
    task = Recognition(rate=RATE, bands=BANDS, hop_ms=HOP_MS, subsampling=subsampling)
    found = jax.device_get(jax.jit(super(Recognition, task).features)(sounds._asdict()))
    facts = {"classes": SYMBOLS + 1, "channels": BANDS, "subsampling": subsampling}
    optimizer = Optimizer("adamw", LEARNING_RATE, {}, WEIGHT_DECAY, clip_norm=CLIP_NORM)
    shared = {f"batch/{name}": x for name, x in found.items()}
    return TaskModel(task, make_factory(sizes), facts, optimizer, make_batch(found), shared)


def make_factory(sizes: Sizes) -> Callable[..., Any]:
    """Makes the factory of a model of these sizes."""
    if sizes.model == "lstm_ctc":
        return partial(
            models.RecurrentCtc, width=sizes.width, features=sizes.features, depth=sizes.depth,
            bidirectional=sizes.both, dropout=DROPOUT,
        )  # fmt: skip
    return partial(
        models.Conformer, width=sizes.width, depth=sizes.depth, heads=sizes.heads, window=sizes.window,
        filters=sizes.filters, dropout=DROPOUT,
    )  # fmt: skip
