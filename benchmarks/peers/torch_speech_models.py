"""The recognizers of speech of `jaxaccel.models` in PyTorch, as its users write them.

They are called with features (B, T, bands) and the number of frames of each sound, which stays on the host.
"""

from collections.abc import Callable, Mapping

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.nn.utils import rnn  # pyright: ignore[reportMissingImports]

from benchmarks.peers.torch_layers import (
    Attention,
    Rotation,
    Weights,
    make_norm,
    make_rotation,
    set_values,
    take_conv,
    take_linear,
    take_lstm,
    take_norm,
)
from benchmarks.sounds import BANDS, DROPOUT, SUBSAMPLING, SYMBOLS, Sizes

State = tuple[torch.Tensor, torch.Tensor]


class LstmCtc(nn.Module):
    """`jaxaccel.models.lstm_ctc` of packed sequences. PyTorch's second bias stays 0 at the start."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.subsampling = SUBSAMPLING["lstm_ctc"]
        self.project = nn.Linear(self.subsampling * BANDS, sizes.width)
        between = DROPOUT if sizes.depth > 1 else 0.0
        self.rnn = nn.LSTM(
            sizes.width, sizes.features, sizes.depth, batch_first=True, dropout=between,
            bidirectional=sizes.both,
        )  # fmt: skip
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear((1 + sizes.both) * sizes.features, SYMBOLS + 1)

    def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self._project(features))
        lengths = count_outputs(frames, self.subsampling)
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(self.dropout(outputs))

    def step(self, features: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """Computes the logits of the next frames, and the state after them."""
        outputs, after = self.rnn(self._project(features), state)
        return self.head(outputs), after

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        take_linear(self.project, weights, "project")
        take_lstm(self.rnn, weights)
        take_linear(self.head, weights, "head")

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        batch, length, bands = features.shape
        padded = functional.pad(features, (0, 0, 0, -length % self.subsampling))
        return functional.relu(self.project(padded.view(batch, -1, self.subsampling * bands)))


class HalfStep(nn.Module):
    """Half of what two dense layers with Swish make of a normalized frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = make_norm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.dropout(self.down(self.dropout(functional.silu(self.up(self.norm(x))))))

    def take(self, weights: Weights, at: str) -> None:
        """Takes weights that stand `at` a path."""
        take_norm(self.norm, weights, f"{at}/norm")
        take_linear(self.up, weights, f"{at}/mlp/up")
        take_linear(self.down, weights, f"{at}/mlp/down")


class Convolution(nn.Module):
    """A gated dense layer, a depthwise convolution over time, LayerNorm, Swish and a dense layer."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.norm, self.inner_norm = make_norm(width), make_norm(width)
        self.expand, self.project = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, window, padding=window // 2, groups=width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        x = functional.glu(self.expand(self.norm(x))).masked_fill(padding[..., None], 0.0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.project(functional.silu(self.inner_norm(x))))

    def take(self, weights: Weights, at: str) -> None:
        """Takes weights that stand `at` a path."""
        for name in ("norm", "inner_norm"):
            take_norm(getattr(self, name), weights, f"{at}/{name}")
        for name in ("expand", "project"):
            take_linear(getattr(self, name), weights, f"{at}/{name}")
        take_conv(self.depthwise, weights, f"{at}/depthwise")


class Block(nn.Module):
    """`jaxaccel.models.audio.conformer.ConformerBlock`."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.before, self.after = HalfStep(width), HalfStep(width)
        self.norm1, self.norm2 = make_norm(width), make_norm(width)
        self.attention = Attention(width, heads)
        self.convolution = Convolution(width, window)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = x + self.before(x)
        x = x + self.dropout(self.attention(self.norm1(x), mask, rotation))
        x = x + self.convolution(x, ~mask)
        return self.norm2(x + self.after(x))

    def take(self, weights: Weights, at: str) -> None:
        """Takes weights of the block that stands `at` a path."""
        for name in ("before", "attention", "convolution", "after"):
            getattr(self, name).take(weights, f"{at}/{name}")
        for name in ("norm1", "norm2"):
            take_norm(getattr(self, name), weights, f"{at}/{name}")


class ConformerCtc(nn.Module):
    """`jaxaccel.models.conformer_ctc`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.half, self.filters = sizes.width // sizes.heads // 2, sizes.filters
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, sizes.filters, 3, stride=2, padding=1) for channels in (1, sizes.filters)
        )
        self.project = nn.Linear(-(-BANDS // 4) * sizes.filters, sizes.width)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads, sizes.window) for _ in range(sizes.depth))
        self.head = nn.Linear(sizes.width, SYMBOLS + 1)

    def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        places = torch.arange(features.shape[1], device=features.device)
        mask = places < frames.to(features.device)[:, None]
        x = features[:, None]
        for conv in self.convs:
            x = functional.relu(conv(x.masked_fill(~mask[:, None, :, None], 0.0)))
            mask = mask[:, ::2]
        x = self.dropout(self.project(x.transpose(1, 2).flatten(2)))
        rotation = make_rotation(x.shape[1], self.half, x.device)
        for block in self.blocks:
            x = block(x, mask, rotation)
        return self.head(x)

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        for number, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            take_conv(conv, weights, f"convs/{number}/conv")
        # Here a frame has its filters before its bands, there behind them.
        kernel = weights["project/kernel"]
        by_band = kernel.reshape(-1, self.filters, kernel.shape[1])
        set_values(self.project.weight, by_band.swapaxes(0, 1).reshape(kernel.shape).T)
        set_values(self.project.bias, weights["project/bias"])
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.take(weights, f"blocks/{number}")
        take_linear(self.head, weights, "head")


MODELS: Mapping[str, Callable[[Sizes], nn.Module]] = {"lstm_ctc": LstmCtc, "conformer_ctc": ConformerCtc}


def count_outputs(frames: torch.Tensor, subsampling: int) -> torch.Tensor:
    """Counts the outputs of so many frames."""
    return (frames + subsampling - 1) // subsampling
