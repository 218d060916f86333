"""Trains a Transformer that translates in eager PyTorch, and decodes with it, in a process of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import serve
from benchmarks.peers.torch_tasks import DEVICE, Arrays, Batch, Command, Runner, Session, as_int64, read_sizes
from benchmarks.peers.torch_translation_models import CachedDecoder, Translator
from benchmarks.sentences import (
    BEGIN,
    CLIP_NORM,
    LABEL_SMOOTHING,
    LEARNING_RATE,
    PAD,
    WEIGHT_DECAY,
    Sizes,
    draw_pairs,
)


class WholePrefix:
    """The decoder of `nn.Transformer`, which has no cache: each token is computed with all those before it.

    Args:
      model: of which it is the decoder.
      memory: (B, S, width), what the encoder made of the sources.
      padding: (B, S), True where there are no tokens.
      length: positions at most.
      beam: hypotheses of each row.
    """

    def __init__(
        self, model: Translator, memory: torch.Tensor, padding: torch.Tensor, length: int, beam: int = 1
    ) -> None:
        self._model = model
        self._memory, self._padding = (x.repeat_interleave(beam, 0) for x in (memory, padding))
        self._tokens = torch.empty(len(self._memory), 0, dtype=torch.int64, device=memory.device)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B * beam, vocabulary) of what follows `tokens` (B * beam,)."""
        self._tokens = torch.cat([self._tokens, tokens[:, None]], 1)
        return self._model.find_logits(self._model.decode(self._tokens, self._memory, self._padding)[:, -1])

    def follow(self, parents: torch.Tensor) -> None:
        """Goes on with other hypotheses: those at `parents` (B * beam,)."""
        self._tokens = self._tokens[parents]


class Decoding:
    """Translates batches, all sentences to the same length.

    Args:
      model: it has its weights.
      beam: hypotheses of a search.
    """

    def __init__(self, model: Translator, beam: int) -> None:
        self._model, self._beam = model.to(DEVICE).eval(), beam

    def check(self, batch: Batch) -> dict[str, Any]:
        """Decodes in all ways.

        Raises:
          RuntimeError: the cache changes what is found.
        """
        greedy, whole = (self._run(self._decode, kind, [batch]) for kind in (CachedDecoder, WholePrefix))
        (beam, scores), (other, _) = (
            self._run(self._search, kind, [batch]) for kind in (CachedDecoder, WholePrefix)
        )
        if not (torch.equal(greedy, whole) and torch.equal(beam, other)):
            raise RuntimeError("PyTorch's decoder finds something else with a cache")
        return {"greedy": greedy.tolist(), "beam": beam.tolist(), "scores": scores.tolist()}

    def greedy_cached(self, batches: Sequence[Batch]) -> None:
        """Takes the most probable token at each step, with a cache."""
        self._run(self._decode, CachedDecoder, batches)

    def greedy_whole(self, batches: Sequence[Batch]) -> None:
        """The same without one."""
        self._run(self._decode, WholePrefix, batches)

    def beam_cached(self, batches: Sequence[Batch]) -> None:
        """Searches with a beam, with a cache."""
        self._run(self._search, CachedDecoder, batches)

    def beam_whole(self, batches: Sequence[Batch]) -> None:
        """The same without one."""
        self._run(self._search, WholePrefix, batches)

    def _run(self, decode: Any, kind: Any, batches: Sequence[Batch]) -> Any:
        (batch,) = batches
        with torch.inference_mode():
            found = decode(kind, *batch.inputs[:2])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return found

    def _decode(self, kind: Any, source: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        length = source.shape[1]
        decoder = kind(self._model, self._model.encode(source, padding), padding, length)
        last, tokens = torch.full((len(source),), BEGIN, device=DEVICE), []
        for _ in range(length):
            last = decoder.step(last).argmax(-1)
            tokens.append(last)
        return torch.stack(tokens, 1)

    def _search(
        self, kind: Any, source: torch.Tensor, padding: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, length, beam = *source.shape, self._beam
        decoder = kind(self._model, self._model.encode(source, padding), padding, length, beam)
        scores = torch.full((rows, beam), -torch.inf, device=DEVICE)
        scores[:, 0] = 0
        first = torch.arange(rows, device=DEVICE)[:, None] * beam
        last = torch.full((rows * beam,), BEGIN, device=DEVICE)
        tokens = torch.empty((rows * beam, 0), dtype=torch.int64, device=DEVICE)
        for _ in range(length):
            now = decoder.step(last).log_softmax(-1)
            vocabulary = now.shape[-1]
            scores, at = (scores[..., None] + now.view(rows, beam, -1)).view(rows, -1).topk(beam)
            parents = (first + at // vocabulary).view(-1)
            last = (at % vocabulary).view(-1)
            decoder.follow(parents)
            tokens = torch.cat([tokens[parents], last[:, None]], 1)
        return tokens.view(rows, beam, length)[:, 0], scores[:, 0]


def make_runner(command: Command, arrays: Arrays, compiled: bool) -> Runner | Decoding:
    """Makes a translator that trains, or one that decodes where the command names a beam."""
    model = Translator(read_sizes(Sizes, command))
    model.take(arrays)
    if "beam" in command:
        return Decoding(model, command["beam"])
    return Runner(
        model, compute_loss, compiled, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
    )  # fmt: skip


def draw(command: Command, arrays: Arrays) -> Mapping[str, list[Batch]]:
    """Draws the batch that jaxaccel has too."""
    pairs = draw_pairs(command["length"], command["batch_size"])
    source, target = (as_int64(x).to(DEVICE) for x in (pairs.source, pairs.target))
    previous = functional.pad(target[:, :-1], (1, 0), value=BEGIN)
    return {"batch": [Batch((source, source == PAD, previous), (target,))]}


def compute_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Computes the smoothed cross-entropy, in nats a token."""
    return functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=LABEL_SMOOTHING
    )


if __name__ == "__main__":
    serve(Session(make_runner, draw).answer)
