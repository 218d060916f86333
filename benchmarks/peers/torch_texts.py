"""Trains and runs classifiers of texts in eager PyTorch, and by `torch.compile`, in a process of its own; for text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import count_cores, serve, time_calls
from benchmarks.peers.torch_text_models import MODELS
from benchmarks.texts import LEARNING_RATE, WEIGHT_DECAY, Sizes, Texts, draw_batch, draw_epoch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Runner:
    """A model that goes through batches, training or in inference; the loss stays on the device."""

    def __init__(self, sizes: Sizes, weights: dict[str, np.ndarray], compiled: bool) -> None:
        model: Any = MODELS[sizes.model](sizes)
        model.take(weights)
        self._plain = model.to(DEVICE)
        self._model = torch.compile(self._plain, dynamic=False) if compiled else self._plain
        parameters = list(self._plain.parameters())
        groups: Any = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, LEARNING_RATE, fused=True)

    def check(self, batch: Tensors) -> dict[str, float]:
        """Computes the loss and the norm of the weights' gradient, without dropout."""
        self._plain.eval()
        tokens, lengths, labels = batch
        loss = functional.cross_entropy(self._plain(tokens, lengths), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # PyTorch's LSTM has a second bias, whose gradient is that of the first.
        named = [p.grad for name, p in self._plain.named_parameters() if "bias_hh" not in name]
        norm = torch.stack([g.square().sum() for g in named if g is not None]).sum().sqrt()
        return {"loss": loss.item(), "gradient": norm.item()}

    def train(self, batches: Sequence[Tensors]) -> None:
        """Takes a training step on each batch."""
        self._plain.train()
        for tokens, lengths, labels in batches:
            self._optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(self._model(tokens, lengths), labels).backward()
            self._optimizer.step()
        _wait()

    def infer(self, batches: Sequence[Tensors]) -> None:
        """Computes the logits of each batch."""
        self._plain.eval()
        with torch.inference_mode():
            for tokens, lengths, _ in batches:
                self._model(tokens, lengths)
        _wait()


class Session:
    """The models of one cell, and its batches."""

    def __init__(self) -> None:
        torch.set_num_threads(count_cores())
        self._runners: dict[str, Runner] = {}
        self._batches: dict[str, list[Tensors]] = {}

    def answer(self, command: dict[str, Any]) -> Any:
        """Makes the models of a cell, or runs one of them: ``WAY, WHAT, BATCHES``."""
        if "name" in command:
            way, what, batches = command["name"].split(", ")
            runner, chosen = self._runners[way], self._batches[batches]
            return time_calls(lambda: getattr(runner, what)(chosen), command["steps"])
        sizes = Sizes(**{name: _as_tuple(value) for name, value in command["sizes"].items()})
        weights = dict(np.load(command["weights"]))
        ways = {"eager": False, **({"compiled": True} if command["compile"] else {})}
        torch.compiler.reset()
        self._runners = {way: Runner(sizes, weights, compiled) for way, compiled in ways.items()}
        if "length" in command:
            drawn = {"batch": [draw_batch(command["length"], command["batch_size"])]}
        else:
            drawn = {
                name: draw_epoch(command["examples"], command["batch_size"], bounds)
                for name, bounds in command["bounds"].items()
            }
        self._batches = {name: [_as_tensors(texts) for texts in some] for name, some in drawn.items()}
        first = next(iter(self._batches.values()))[0]
        versions = {"torch": f"{torch.__version__} on {DEVICE}"}
        return {"ways": list(ways), "versions": versions, **self._runners["eager"].check(first)}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_tensors(texts: Texts) -> Tensors:
    # Lengths stay on the host, where PyTorch packs sequences by them.
    tokens, labels = (torch.from_numpy(x.astype(np.int64)).to(DEVICE) for x in (texts.token, texts.label))
    return tokens, torch.from_numpy(texts.length.astype(np.int64)), labels


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Session().answer)
