"""Trains and runs classifiers of texts in eager PyTorch, and by `torch.compile`, in a process of its own; for text."""

from collections.abc import Mapping

from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import serve
from benchmarks.peers.torch_tasks import DEVICE, Arrays, Batch, Command, Runner, Session, as_int64, read_sizes
from benchmarks.peers.torch_text_models import MODELS
from benchmarks.texts import LEARNING_RATE, WEIGHT_DECAY, Sizes, Texts, draw_batch, draw_epoch


def make_runner(command: Command, arrays: Arrays, compiled: bool) -> Runner:
    """Makes a classifier."""
    sizes = read_sizes(Sizes, command)
    model = MODELS[sizes.model](sizes)
    model.take(arrays)
    return Runner(
        model, functional.cross_entropy, compiled, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )


def draw(command: Command, arrays: Arrays) -> Mapping[str, list[Batch]]:
    """Draws the batches that jaxaccel has too."""
    if "length" in command:
        drawn = {"batch": [draw_batch(command["length"], command["batch_size"])]}
    else:
        drawn = {
            name: draw_epoch(command["examples"], command["batch_size"], bounds)
            for name, bounds in command["bounds"].items()
        }
    return {name: [_as_batch(texts) for texts in some] for name, some in drawn.items()}


def _as_batch(texts: Texts) -> Batch:
    # Lengths stay on the host, where PyTorch packs sequences by them.
    tokens, labels = (as_int64(x).to(DEVICE) for x in (texts.token, texts.label))
    return Batch((tokens, as_int64(texts.length)), (labels,))


if __name__ == "__main__":
    serve(Session(make_runner, draw).answer)
