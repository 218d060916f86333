"""Trains and runs recognizers of speech in eager PyTorch, and by `torch.compile`, in a process of its own."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import serve
from benchmarks.peers.torch_speech_models import MODELS, LstmCtc, State, count_outputs
from benchmarks.peers.torch_tasks import DEVICE, Arrays, Batch, Command, Runner, Session, as_int64, read_sizes
from benchmarks.sounds import CLIP_NORM, LEARNING_RATE, SUBSAMPLING, WEIGHT_DECAY, Sizes


class Listener:
    """A model that hears a stream, chunk by chunk; chunks come from the host, logits go there."""

    def __init__(self, model: LstmCtc, compiled: bool) -> None:
        self._plain = model.to(DEVICE).eval()
        self._step = torch.compile(model.step, dynamic=False) if compiled else model.step
        self._state: State | None = None
        self._next = itertools.count()

    def check(self, chunks: torch.Tensor) -> dict[str, Any]:
        """Computes the logits of the last chunk, after all others."""
        state, logits = None, None
        with torch.inference_mode():
            for chunk in chunks:
                logits, state = self._plain.step(chunk[None].to(DEVICE), state)
        assert logits is not None
        return {"logits": logits[0].tolist()}

    def stream(self, batches: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the logits of the next chunk."""
        (chunks,) = batches
        with torch.inference_mode():
            chunk = chunks[next(self._next) % len(chunks)][None].to(DEVICE)
            logits, self._state = self._step(chunk, self._state)
        return logits.cpu()


def make_runner(command: Command, arrays: Arrays, compiled: bool) -> Runner | Listener:
    """Makes a recognizer."""
    sizes = read_sizes(Sizes, command)
    model: Any = MODELS[sizes.model](sizes)
    model.take(arrays)
    if not sizes.both:
        return Listener(model, compiled)
    return Runner(
        model, compute_loss, compiled, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
    )  # fmt: skip


def draw(command: Command, arrays: Arrays) -> Mapping[str, Sequence[Batch | torch.Tensor]]:
    """Takes the features that jaxaccel computed."""
    feature = torch.from_numpy(arrays["batch/feature"])
    if "batch/frames" not in arrays:
        return {"batch": [feature]}
    frames, label, labels = (as_int64(arrays[f"batch/{name}"]) for name in ("frames", "label", "labels"))
    # Lengths stay on the host, where PyTorch packs sequences by them.
    outputs = count_outputs(frames, SUBSAMPLING[command["sizes"]["model"]])
    return {"batch": [Batch((feature.to(DEVICE), frames), (label.to(DEVICE), outputs, labels))]}


def compute_loss(
    logits: torch.Tensor, label: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Computes -log of the probability of the transcripts, in nats a symbol."""
    log_probabilities = logits.log_softmax(2).transpose(0, 1)
    return functional.ctc_loss(log_probabilities, label, outputs, labels, reduction="sum") / labels.sum()


if __name__ == "__main__":
    serve(Session(make_runner, draw).answer)
