"""A Transformer that translates, as jaxaccel trains it and decodes with it."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxaccel as ja
from benchmarks.sentences import (
    BEGIN,
    CLIP_NORM,
    DROPOUT,
    END,
    LABEL_SMOOTHING,
    LEARNING_RATE,
    PAD,
    VOCABULARY,
    WEIGHT_DECAY,
    Pairs,
    Sizes,
)
from benchmarks.task_programs import TaskModel, make_batch
from jaxaccel import models
from jaxaccel.models.bound import Bound
from jaxaccel.optim import Optimizer
from jaxaccel.tasks import Translation
from jaxaccel.tasks.decoding import decode_greedily, search_beams

NEVER = -1
"""An end that no model writes: all sequences are as long."""
Transform = Callable[[Callable[..., Any]], Callable[..., Any]]
PRECISIONS: Mapping[str, tuple[Transform, Callable[[Any], Any]]] = {
    "float32": (lambda f: f, lambda params: params),
    "bfloat16": (ja.bfloat16, lambda params: params),
    "int8": (ja.int8, ja.quantize),
    "int8, weights only": (partial(ja.int8, activations="none"), ja.quantize),
}
"""What is made of the model, and of its parameters."""


@dataclasses.dataclass(frozen=True)
class TokenTranslation(Translation):
    """Translation of tokens, which are given."""

    @property
    def begin(self) -> int:
        """The token before the first one."""
        return BEGIN

    @property
    def end(self) -> int:
        """The token behind the last one."""
        return END


def make_translation_model(sizes: Sizes, pairs: Pairs) -> TaskModel:
    """Makes a translator of sentences as long as these."""
    length = pairs.source.shape[1]
    task = TokenTranslation(fill_to=(length,), label_smoothing=LABEL_SMOOTHING)
    facts = {"vocabulary": VOCABULARY, "pad": PAD, "begin": BEGIN, "end": END, "max_length": length}
    optimizer = Optimizer("adamw", LEARNING_RATE, {}, WEIGHT_DECAY, clip_norm=CLIP_NORM)
    factory = partial(
        models.Translator, width=sizes.width, depth=sizes.depth, heads=sizes.heads, hidden=sizes.hidden,
        dropout=DROPOUT,
    )  # fmt: skip
    return TaskModel(task, factory, facts, optimizer, make_batch(pairs._asdict()))


class Decoder:
    """Decodes translations of a batch, all of the same length.

    Args:
      sizes: of the model.
      pairs: of which the sources are translated.
      beam: hypotheses of a search.
    """

    def __init__(self, sizes: Sizes, pairs: Pairs, beam: int) -> None:
        self._model, self._beam = make_translation_model(sizes, pairs), beam
        self._batch = {name: self._model.batch[name] for name in ("source", "source_length")}

    def save(self, file: Path) -> None:
        """Saves the weights for the other process, by path."""
        self._model.save(file)

    def check(self) -> dict[str, np.ndarray]:
        """Computes the tokens of both ways to decode, and the log probabilities of what the search found."""
        with jax.default_matmul_precision("highest"):
            tokens, _ = self.make_decoding("greedy", "float32")()
            best, scores = self.make_decoding("beam", "float32")()
        return {name: np.asarray(x) for name, x in {"greedy": tokens, "beam": best, "scores": scores}.items()}

    def make_decoding(self, what: str, precision: str) -> Callable[[], Any]:
        """Makes what translates: tokens (B, L) and log probabilities (B,), of the best one where there are several."""
        training = self._model.training
        transform, change = PRECISIONS[precision]
        key, length = jax.random.key(0), self._batch["source"].shape[1]

        def apply(params: Any, *inputs: Any, **method: str) -> Any:
            return training.model.apply(
                params, self._model.model_state, *inputs, key=key, train=False, **method
            )[0]

        def decode(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            bound = Bound(transform(apply), params)
            mask = jnp.arange(length) < batch["source_length"][:, None]
            cache = bound.start(bound.encode(batch["source"], mask), mask, length)
            begin = jnp.full(len(mask), BEGIN, jnp.int32)
            if what == "greedy":
                found = decode_greedily(bound.step, cache, begin, NEVER, length, PAD)
                return found.tokens, found.scores
            beams = search_beams(bound.step, cache, begin, NEVER, length, PAD, beam=self._beam)
            return beams.tokens[:, 0], beams.scores[:, 0]

        params = jax.device_put(change(self._model.params))
        call = jax.jit(training.lowered(decode)).lower(params, self._batch).compile()
        return lambda: call(params, self._batch)
