"""Trains the same models in eager PyTorch, in a process of its own; for train_step.

It is always a process of its own: PyTorch and JAX need not be installed together, neither sees the other's
allocator settings, and on a GPU each has its own context. Commands and answers are lines of JSON.
"""

import itertools
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import count_cores, serve, time_steps
from benchmarks.workloads import CLASSES, WORKLOADS, Workload, draw_data, shuffle_batches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class ConvNorm(nn.Sequential):
    def __init__(self, features_in: int, features_out: int, stride: int = 1, relu: bool = True) -> None:
        layers = [
            nn.Conv2d(features_in, features_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(features_out),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class ConvNet(nn.Module):
    """`jaxaccel.models.ConvNet`."""

    def __init__(
        self, widths: tuple[int, ...], residuals: tuple[int, ...], hidden: int, dropout: float,
        image: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        size, _, channels = image
        self.first = nn.ModuleList(
            ConvNorm(i, o) for i, o in zip((channels, *widths[:-1]), widths, strict=True)
        )
        self.residuals = nn.ModuleList(
            nn.ModuleList(ConvNorm(width, width) for _ in range(n))
            for width, n in zip(widths, residuals, strict=True)
        )
        for _ in widths:
            size = -(-size // 2)
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(size * size * widths[-1], hidden, bias=False), nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, CLASSES),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, residuals in zip(self.first, self.residuals, strict=True):
            x = first(x)
            for residual in residuals:  # pyright: ignore[reportGeneralTypeIssues]
                x = x + residual(x)
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        return self.hidden(x)


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, features_in: int, features_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(features_in, features_out, stride), ConvNorm(features_out, features_out, relu=False)
        )
        self.stride, self.pad = stride, (features_out - features_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


def make_resnet20(image: tuple[int, int, int]) -> nn.Module:
    """Makes `jaxaccel.models.resnet20`."""
    blocks = [
        Block(16 * 2 ** max(stage - (block == 0), 0), 16 * 2**stage, 2 if stage and block == 0 else 1)
        for stage in range(3)
        for block in range(3)
    ]
    return nn.Sequential(
        ConvNorm(image[2], 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def make_mlp(hidden: int, image: tuple[int, int, int]) -> nn.Module:
    """Makes `trainer.MLP`."""
    height, width, channels = image
    return nn.Sequential(
        nn.Flatten(), nn.Linear(height * width * channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
        nn.ReLU(), nn.Linear(hidden, CLASSES),
    )  # fmt: skip


class RowLSTM(nn.Module):
    """`trainer.RowLSTM`."""

    def __init__(self, hidden: int, image: tuple[int, int, int]) -> None:
        super().__init__()
        _, width, channels = image
        self.rnn = nn.LSTM(width * channels, hidden, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x.permute(0, 2, 3, 1).flatten(2))[0][:, -1])


def make_optimizer(workload: Workload, model: nn.Module) -> torch.optim.Optimizer:
    """Makes the optimizer of a workload; biases and normalization do not decay."""
    parameters = list(model.parameters())
    groups: Any = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": workload.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if workload.optimizer == "adamw":
        return torch.optim.AdamW(groups, workload.learning_rate, fused=True)
    return torch.optim.SGD(groups, workload.learning_rate, momentum=0.9, fused=True)


class Eager:
    """An eager training loop over NumPy batches; the loss stays on the device."""

    def __init__(self, workload: Workload, examples: int, batch_size: int, layout: str) -> None:
        images, labels = draw_data(workload, examples)
        images = (
            images.transpose(0, 3, 1, 2) if layout == "channels_last" else images.transpose(0, 3, 1, 2).copy()
        )
        self._batches = shuffle_batches(images, labels.astype("int64"), batch_size)
        self._layout = LAYOUTS[layout]
        factory = {"mlp": make_mlp, "convnet": ConvNet, "resnet20": make_resnet20, "lstm": RowLSTM}[
            workload.model
        ]
        model: nn.Module = factory(**workload.options, image=workload.image)
        self._model = model.to(DEVICE, memory_format=self._layout)  # pyright: ignore[reportCallIssue]
        self._optimizer = make_optimizer(workload, self._model)
        self._model.train()

    def run(self, steps: int) -> float:
        """Times `steps` steps, in seconds each, after one that does not count."""
        return time_steps(self._advance, steps)

    def _advance(self, steps: int) -> None:
        for images, labels in itertools.islice(self._batches, steps):
            x = torch.from_numpy(images).to(DEVICE, non_blocking=True)
            y = torch.from_numpy(labels).to(DEVICE, non_blocking=True)
            x = x.to(torch.float32, memory_format=self._layout).div_(127.5).sub_(1)
            self._optimizer.zero_grad(set_to_none=True)
            logits = self._model(x)
            loss = functional.cross_entropy(logits, y)
            loss.backward()
            self._optimizer.step()
            self.accuracy = (logits.detach().argmax(1) == y).float().mean()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()


class Session:
    """The models of one workload, ready to train."""

    def __init__(self) -> None:
        torch.set_num_threads(count_cores())
        self._running: dict[str, Eager] = {}

    def answer(self, command: dict[str, Any]) -> Any:
        """Makes the models of a workload, or trains one of them."""
        if "workload" not in command:
            return self._running[command["name"]].run(command["steps"])
        workload = WORKLOADS[command["workload"]]
        # Without an image there is no layout to choose.
        layouts = ["contiguous"] if workload.model in ("mlp", "lstm") else list(LAYOUTS)
        sizes = command["examples"], command["batch_size"]
        self._running = {name: Eager(workload, *sizes, name) for name in layouts}
        return {"names": layouts, "versions": {"torch": f"{torch.__version__} on {DEVICE}"}}


if __name__ == "__main__":
    serve(Session().answer)
