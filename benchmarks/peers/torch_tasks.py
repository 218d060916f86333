"""Models of tasks that train and infer in eager PyTorch, and by `torch.compile`: what serves texts and speech alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import count_cores, time_calls

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Command = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]


class Batch(NamedTuple):
    """What a model is called with, and what its loss compares the outputs with."""

    inputs: tuple[torch.Tensor, ...]
    targets: tuple[torch.Tensor, ...]


class Runner:
    """A model that goes through batches, training or in inference; the loss stays on the device.

    Args:
      model: it has its weights.
      compute_loss: (outputs, *targets) -> the loss.
      compiled: whether `torch.compile` takes part.
      learning_rate: of AdamW.
      weight_decay: of weights with more than one axis.
      clip_norm: norm that gradients are clipped to; 0 clips nothing.
    """

    def __init__(
        self, model: Any, compute_loss: Callable[..., torch.Tensor], compiled: bool, *,
        learning_rate: float, weight_decay: float, clip_norm: float = 0.0,
    ) -> None:  # fmt: skip
        self._plain = model.to(DEVICE)
        self._model = torch.compile(self._plain, dynamic=False) if compiled else self._plain
        self._compute_loss = compute_loss
        self._clip_norm = clip_norm
        parameters = list(self._plain.parameters())
        groups: Any = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, learning_rate, fused=True)

    def check(self, batch: Batch) -> dict[str, float]:
        """Computes the loss and the norm of the weights' gradient, without dropout."""
        self._plain.eval()
        loss = self._compute_loss(self._plain(*batch.inputs), *batch.targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # PyTorch's LSTM has a second bias, whose gradient is that of the first.
        named = [p.grad for name, p in self._plain.named_parameters() if "bias_hh" not in name]
        norm = torch.stack([g.square().sum() for g in named if g is not None]).sum().sqrt()
        return {"loss": loss.item(), "gradient": norm.item()}

    def train(self, batches: Sequence[Batch]) -> None:
        """Takes a training step on each batch."""
        self._plain.train()
        for batch in batches:
            self._optimizer.zero_grad(set_to_none=True)
            self._compute_loss(self._model(*batch.inputs), *batch.targets).backward()
            if self._clip_norm:
                torch.nn.utils.clip_grad_norm_(self._plain.parameters(), self._clip_norm)
            self._optimizer.step()
        wait()

    def infer(self, batches: Sequence[Batch]) -> None:
        """Computes the outputs of each batch."""
        self._plain.eval()
        with torch.inference_mode():
            for batch in batches:
                self._model(*batch.inputs)
        wait()


class Session:
    """The models of one cell, and its batches.

    Args:
      make_runner: (command, arrays of the file that it names, whether to compile) -> what has `check` and a method
        for each thing that is timed.
      draw: (command, arrays) -> the batches by name.
    """

    def __init__(
        self,
        make_runner: Callable[[Command, Arrays, bool], Any],
        draw: Callable[[Command, Arrays], Mapping[str, Sequence[Any]]],
    ) -> None:
        torch.set_num_threads(count_cores())
        self._make_runner, self._draw = make_runner, draw
        self._runners: dict[str, Any] = {}
        self._batches: Mapping[str, Sequence[Any]] = {}

    def answer(self, command: dict[str, Any]) -> Any:
        """Makes the models of a cell, or runs one of them: ``WAY, WHAT, BATCHES``."""
        if "name" in command:
            way, what, batches = command["name"].split(", ")
            runner, chosen = self._runners[way], self._batches[batches]
            return time_calls(lambda: getattr(runner, what)(chosen), command["steps"])
        with np.load(command["arrays"]) as file:
            arrays = dict(file)
        ways = {"eager": False, **({"compiled": True} if command["compile"] else {})}
        torch.compiler.reset()
        self._runners = {way: self._make_runner(command, arrays, compiled) for way, compiled in ways.items()}
        self._batches = self._draw(command, arrays)
        first = next(iter(self._batches.values()))[0]
        versions = {"torch": f"{torch.__version__} on {DEVICE}"}
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            checked = self._runners["eager"].check(first)
        return {"ways": list(ways), "versions": versions, **checked}


def read_sizes(kind: Callable[..., Any], command: Command) -> Any:
    """Reads the sizes of a model, of which JSON made lists."""
    values = command["sizes"].items()
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values})


def as_int64(x: np.ndarray) -> torch.Tensor:
    """Puts whole numbers into a tensor, as PyTorch's functions take them."""
    return torch.from_numpy(x.astype(np.int64))


def wait() -> None:
    """Waits for a GPU to end."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
