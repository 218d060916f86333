"""Removes channels of a CIFAR ResNet by torch-pruning, in a process of its own; for channels.

The weights come from JAX, so that both remove channels of the same network.
"""

import copy
from importlib import metadata
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch_pruning  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import count_cores, repeat_call, serve, time_calls
from benchmarks.peers.torch_steps import Block, ConvNorm

STEPS = 400
"""From nothing to all that may go, of which as many are taken as the budget asks for; 400 in its own experiments."""
LEAST = 0.1
"""Share of the channels that stays everywhere, as in `ja.remove_channels`."""


def make_network(depth: int, width: int, classes: int) -> nn.Sequential:
    """Makes `jaxaccel.models.ResNetCifar`."""
    blocks, features = [], width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            blocks.append(Block(features, width * 2**stage, 2 if stage and block == 0 else 1))
            features = width * 2**stage
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)
    return nn.Sequential(ConvNorm(3, width), *blocks, *ends)


def fill_weights(model: nn.Module, file: str) -> nn.Module:
    """Fills `model`, in inference, with the arrays of an npz in the order in which it has them."""
    own = {name: x for name, x in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    with np.load(file) as arrays:
        values = [torch.from_numpy(arrays[f"arr_{i}"]) for i in range(len(own))]
    model.load_state_dict(dict(zip(own, values, strict=True)), strict=False)
    return model.eval()


def count_multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    """Counts those of one example, in convolutions and linear layers."""
    total = 0

    def count(layer: Any, _: Any, y: torch.Tensor) -> None:
        nonlocal total
        total += y[0].numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.inference_mode():
        model(x[:1])
    for hook in hooks:
        hook.remove()
    return total


def prune_model(model: nn.Sequential, x: torch.Tensor, share: float, inside: bool) -> nn.Sequential:
    """Makes a copy with `share` of the multiply-adds left: the least important channels of all layers together go.

    Args:
      model: in inference.
      x: an example of its inputs.
      share: of the multiply-adds that shall be left.
      inside: only channels inside of blocks go, none of those that shortcuts carry.
    """
    model = copy.deepcopy(model)
    ignored = [model[-1]]
    if inside:
        ignored += [model[0], *(block.body[1] for block in model if isinstance(block, Block))]
    pruner = torch_pruning.pruner.BasePruner(
        model, x[:1], importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=1.0, max_pruning_ratio=1 - LEAST, iterative_steps=STEPS, ignored_layers=ignored,
    )  # fmt: skip
    budget = share * count_multiply_adds(model, x)
    for _ in range(STEPS):
        if count_multiply_adds(model, x) <= budget:
            return model
        pruner.step()
    raise ValueError(f"{STEPS} steps left more than {share:g} of the multiply-adds")


def mask_channels(model: nn.Module, smaller: nn.Module) -> nn.Module:
    """Copies `model`, with zeros behind each BatchNorm for the channels that `smaller` has not.

    Running means say which those are: no two channels have the same, and they are cut but never changed.
    """
    model = copy.deepcopy(model)
    for norm, left in zip(find_norms(model), find_norms(smaller), strict=True):
        gone = ~torch.isin(norm.running_mean, left.running_mean)
        if int((~gone).sum()) != left.num_features:
            raise ValueError("running means do not say which channels are left")
        norm.weight.data[gone] = 0
        norm.bias.data[gone] = 0
    return model


def find_norms(model: nn.Module) -> list[Any]:
    """Finds the BatchNorms of a model, in order."""
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def measure_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    """Measures the root mean square of the difference over that of the reference."""
    return float((y - reference).norm() / reference.norm())


class Session:
    """The network, and what torch-pruning makes of it."""

    def __init__(self, weights: str, inputs: str, depth: int, width: int, classes: int) -> None:
        self._models = {"PyTorch": fill_weights(make_network(depth, width, classes), weights)}
        self._x = torch.from_numpy(np.load(inputs).transpose(0, 3, 1, 2).copy())

    def describe(self) -> dict[str, Any]:
        """Describes what the whole network costs, and what it computes."""
        with torch.inference_mode():
            outputs = self._models["PyTorch"](self._x)
        versions = {name: metadata.version(name) for name in ("torch", "torch-pruning")}
        return self._costs("PyTorch") | {"outputs": outputs.tolist(), "versions": versions}

    def remove(self, name: str, share: float, repeats: int) -> dict[str, Any]:
        """Removes channels: how long it took each time, what is left and how far off masking; or why it failed."""
        whole = self._models["PyTorch"]
        try:
            left, seconds = repeat_call(lambda: prune_model(whole, self._x, share, "inside" in name), repeats)
            with torch.inference_mode():
                error = measure_error(left(self._x), mask_channels(whole, left)(self._x))
        except Exception as problem:  # whatever it is, it is the result
            return {"failed": f"{type(problem).__name__}: {problem}"}
        self._models[name] = left
        return self._costs(name) | {"seconds": seconds, "error": error}

    def run(self, name: str, steps: int) -> float:
        """Times `steps` calls of "MODEL, BATCH", in seconds each, after one that does not count."""
        model, batch_size = name.rsplit(", ", 1)
        x = torch.randn((int(batch_size), *self._x.shape[1:]))
        with torch.inference_mode():
            return time_calls(lambda: self._models[model](x), steps)

    def _costs(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        parameters = sum(p.numel() for p in model.parameters())
        return {"multiply_adds": count_multiply_adds(model, self._x), "parameters": parameters}


class Service:
    """A session that begins when the weights come."""

    def __init__(self) -> None:
        torch.set_num_threads(count_cores())
        torch.manual_seed(0)
        self._session: Session | None = None

    def answer(self, command: dict[str, Any]) -> Any:
        """Takes the weights, removes channels, or runs a network."""
        if self._session is None:
            self._session = Session(**command)
            return self._session.describe()
        return self._session.remove(**command) if "share" in command else self._session.run(**command)


if __name__ == "__main__":
    serve(Service().answer)
