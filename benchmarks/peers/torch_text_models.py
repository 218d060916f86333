"""The classifiers of texts of `jaxaccel.models` in PyTorch, as its users write them. Padding is the token 0."""

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
from benchmarks.texts import CLASSES, DROPOUT, VOCABULARY, Sizes


class TextCnn(nn.Module):
    """`jaxaccel.models.text_cnn`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, sizes.width, padding_idx=0)
        self.convs = nn.ModuleList(
            nn.Conv1d(sizes.width, sizes.filters, window, padding="same") for window in sizes.windows
        )
        self.dropout = nn.Dropout(DROPOUT["text_cnn"])
        self.head = nn.Linear(sizes.filters * len(sizes.windows), CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(1, 2)
        padding = (tokens == 0)[:, None]
        found = [conv(x).masked_fill(padding, -torch.inf).amax(2) for conv in self.convs]
        return self.head(self.dropout(functional.relu(torch.cat(found, 1))))

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        _take_embedding(self.embed, weights)
        for number, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv1d)
            take_conv(conv, weights, f"convs/{number}")
        take_linear(self.head, weights, "head")


class BiLstm(nn.Module):
    """`jaxaccel.models.bilstm` of packed sequences. PyTorch's second bias stays 0 at the start."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, sizes.width, padding_idx=0)
        self.rnn = nn.LSTM(sizes.width, sizes.features, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT["bilstm"])
        self.head = nn.Linear(2 * sizes.features, CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embed(tokens))
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = rnn.pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, padding_value=-float("inf")
        )
        return self.head(self.dropout(outputs.amax(1)))

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        _take_embedding(self.embed, weights)
        take_lstm(self.rnn, weights)
        take_linear(self.head, weights, "head")


class Block(nn.Module):
    """`jaxaccel.models.layers.transformer.Block`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(width), make_norm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT["text_encoder"])

    def forward(self, x: torch.Tensor, mask: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, rotation))
        hidden = self.dropout(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + self.dropout(self.down(hidden))

    def take(self, weights: Weights, at: str) -> None:
        """Takes weights of the block that stands `at` a path."""
        for name in ("norm1", "norm2"):
            take_norm(getattr(self, name), weights, f"{at}/{name}")
        self.attention.take(weights, f"{at}/attention")
        for name in ("up", "down"):
            take_linear(getattr(self, name), weights, f"{at}/mlp/{name}")


class TextEncoder(nn.Module):
    """`jaxaccel.models.TextEncoder`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.half = sizes.width // sizes.heads // 2
        self.embed = nn.Embedding(VOCABULARY, sizes.width, padding_idx=0)
        self.dropout = nn.Dropout(DROPOUT["text_encoder"])
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads) for _ in range(sizes.depth))
        self.norm = make_norm(sizes.width)
        self.head = nn.Linear(sizes.width, CLASSES)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        rotation = make_rotation(tokens.shape[1], self.half, tokens.device)
        x = self.dropout(self.embed(tokens))
        for block in self.blocks:
            x = block(x, mask, rotation)
        there = mask[..., None]
        pooled = (self.norm(x) * there).sum(1) / there.sum(1)
        return self.head(pooled)

    def take(self, weights: Weights) -> None:
        """Takes weights."""
        _take_embedding(self.embed, weights)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.take(weights, f"blocks/{number}")
        take_norm(self.norm, weights, "norm")
        take_linear(self.head, weights, "head")


MODELS: Mapping[str, Callable[[Sizes], nn.Module]] = {
    "text_cnn": TextCnn,
    "text_encoder": TextEncoder,
    "bilstm": BiLstm,
}


def _take_embedding(embed: nn.Embedding, weights: Weights) -> None:
    table = weights["embed/embedding"].copy()
    table[0] = 0  # what padding is read as; jaxaccel's models do not look
    set_values(embed.weight, table)
